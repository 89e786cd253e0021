"""Scoring measured against the ways it is done today: `python -m benchmarks.rewards [--write]`.

Random weights in the official formats: ViT-B/32 on a CPU, ViT-H/14 on a GPU. Every way scores the same files, four
images to a prompt.

hpsv2's way (tgxs002/HPSv2, img_score.py): one call per image; each call reads the checkpoint again, then encodes one
    image and its prompt. The model itself is made once, as there.
PickScore's way (its README): one call per prompt; each call runs the processor and the model on that prompt's images.
    On a GPU it computes in float32 as the README does, where ours takes its default, bfloat16. On a CPU both compute
    in float32, so that what is left to gain is what surrounds the encoder.
bare encoder: both towers on inputs that are ready, in batches.

On a CPU the clock is processor time on one thread, which others on the machine disturb little; on a GPU it is the wall's.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from benchmarks.measuring import machine, write_section
from rewards import load_scorer
from rewards.preprocess import CLIP_MEAN, CLIP_STD
from rewards.text import clip_tokenizer
from rewards.towers import Towers

TITLES = {"cpu": "## Reward scoring on a CPU", "cuda": "## Reward scoring on a GPU"}
IMAGES = {"cpu": 32, "cuda": 2048}  # on a GPU many: decoding must run ahead of it for long to show what it holds up
IMAGES_OF_A_PROMPT = 4
SLOW = {"hpsv2": 8, "readme": 256}  # images that the other ways are timed on; each of theirs costs the same


@dataclass(frozen=True)
class Size:
    """One architecture in both libraries' words."""

    name: str
    vision: dict[str, int]
    text: dict[str, int]
    width: int


def _tower(width: int, layers: int, heads: int) -> dict[str, int]:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }


SIZES = {
    "cpu": Size("ViT-B-32", _tower(768, 12, 12) | {"patch_size": 32}, _tower(512, 12, 8), 512),
    "cuda": Size("ViT-H-14", _tower(1280, 32, 16) | {"patch_size": 14}, _tower(1024, 24, 16), 1024),
}


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rewards", description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, help="how many images are scored (default: 32; 2048 on a GPU)")
    parser.add_argument("--side", type=int, default=512, help="their width and height in pixels (default: 512)")
    parser.add_argument("--device", choices=tuple(SIZES), help="cpu or cuda (default: the best there is)")
    parser.add_argument("--runs", type=int, default=3, help="runs of each way; the least time counts (default: 3)")
    parser.add_argument("--write", action="store_true", help="write the section of benchmarks/RESULTS.md")
    args = parser.parse_args(list(argv))
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    args.images = args.images or IMAGES[args.device]
    size = SIZES[args.device]
    if args.device == "cpu":
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        prompts, files = _make_images(root, args.images, args.side)
        checkpoint = _make_hps(root / "HPS_v2_compressed.pt", size)
        pickscore = _make_pickscore(root / "PickScore_v1", size)
        rows = _measure(args, size, prompts, files, checkpoint, pickscore, root)
    lines = ["| | measured | aim |", "|---|---|---|", *(f"| {what} | {found} | {aim} |" for what, found, aim in rows)]
    print("\n".join(lines))
    if args.write:
        head = (
            f"`python -m benchmarks.rewards --device {args.device} --images {args.images} --side {args.side}`, "
            f"{date.today()}, {machine(args.device)}, torch {torch.__version__}. {size.name}, random weights; JPEG of "
            f"{args.side} x {args.side}, {IMAGES_OF_A_PROMPT} images to a prompt; "
            f"{'wall' if args.device == 'cuda' else 'processor'} time."
        )
        write_section(TITLES[args.device], "\n".join([head, "", *lines]))


def _measure(
    args: argparse.Namespace,
    size: Size,
    prompts: list[str],
    files: list[Path],
    checkpoint: Path,
    pickscore: Path,
    root: Path,
) -> list[tuple[str, str, str]]:
    device, count = args.device, len(files)
    clock = Clock(device, args.runs)
    common = {"device": device, "architecture": size.name, "source": str(checkpoint)}
    load = clock.once(lambda: load_scorer("hpsv2", **common))
    hps = load_scorer("hpsv2", **common)
    ours_hps = clock(lambda: hps.score(prompts, files))
    bare = clock(_bare(hps.towers, prompts, files))  # type: ignore[attr-defined]
    few = min(count, SLOW["hpsv2"])
    theirs_hps = clock(_hps_way(size, checkpoint, device, prompts[:few], files[:few])) * count / few
    pick = load_scorer(f"pickscore:{pickscore}", device=device)
    ours_pick = clock(lambda: pick.score(prompts, files))
    readme = Readme(pickscore, device)
    some = min(count, SLOW["readme"])
    each = [slice(start, start + IMAGES_OF_A_PROMPT) for start in range(0, some, IMAGES_OF_A_PROMPT)]
    theirs_pick = (
        clock(lambda: [readme.scores(prompts[s.start], [Image.open(file) for file in files[s]]) for s in each])
        * count
        / some
    )

    cached = {**common, "cache": root / "cache"}
    cold = clock.once(lambda: load_scorer("hpsv2", **cached).score(prompts, files))
    warm = clock(lambda: load_scorer("hpsv2", **cached).score(prompts, files))
    rate = f"{count / ours_hps:.3g} images/s"
    return [
        (f"hpsv2, {rate}, against the hpsv2 package's way", f"{theirs_hps / ours_hps:.1f}x", "at least 10x"),
        (
            f"pickscore, {count / ours_pick:.3g} images/s, against the PickScore README's way",
            f"{theirs_pick / ours_pick:.1f}x",
            "at least 4x",
        ),
        ("hpsv2, share of the bare encoder's throughput", f"{100 * bare / ours_hps:.0f} %", "at least 90 %"),
        ("scoring again with a warm cache", f"{cold / warm:.0f}x", "at least 50x"),
        ("loading the checkpoint", f"{load:.2f} s", ""),
        ("`import rewards`", f"{_import_time(device):.2f} s", "under 0.3 s"),
    ]


def _hps_way(size: Size, checkpoint: Path, device: str, prompts: list[str], files: list[Path]) -> Callable[[], object]:
    package = HpsPackage(size, checkpoint, device)
    return lambda: [package.score(file, prompt) for file, prompt in zip(files, prompts, strict=True)]


class Clock:
    """The least time of several runs, after one that does not count."""

    def __init__(self, device: str, runs: int) -> None:
        self._device, self._runs = device, runs

    def __call__(self, task: Callable[[], object]) -> float:
        task()
        return min(self.once(task) for _ in range(self._runs))

    def once(self, task: Callable[[], object]) -> float:
        now = time.perf_counter if self._device == "cuda" else time.process_time
        start = now()
        task()
        if self._device == "cuda":
            torch.cuda.synchronize()
        return now() - start


def _bare(towers: Towers, prompts: list[str], files: list[Path]) -> Callable[[], object]:
    """Return the encoding of what is ready: each image once, each prompt once, 64 at a time."""
    pixels = torch.stack([towers.preprocess.geometry(Image.open(file).convert("RGB")) for file in files])
    tokens = towers.tokenizer(list(dict.fromkeys(prompts)))

    def encode() -> None:
        with torch.inference_mode():
            for start in range(0, len(pixels), 64):
                towers.images(pixels[start : start + 64])
            towers.texts(tokens)

    return encode


class HpsPackage:
    """What hpsv2.score(path, prompt) does, restated: the model is made once, the checkpoint read on every call."""

    def __init__(self, size: Size, checkpoint: Path, device: str) -> None:
        self._checkpoint, self._device = checkpoint, device
        self._model = open_clip.create_model(size.name, device=device, output_dict=True)

    @torch.no_grad()
    def score(self, file: Path, prompt: str) -> float:
        checkpoint = torch.load(self._checkpoint, map_location=self._device, weights_only=True)
        self._model.load_state_dict(checkpoint["state_dict"])
        self._model.to(self._device).eval()
        image = tv.to_tensor(Image.open(file).convert("RGB"))
        scale = 224 / max(image.shape[1:])
        height, width = (round(side * scale) for side in image.shape[1:])
        image = tv.resize(image, [height, width], InterpolationMode.BICUBIC)
        down, right = 224 - height, 224 - width
        image = tv.pad(image, [right // 2, down // 2, right - right // 2, down - down // 2], fill=0)
        image = tv.normalize(image, CLIP_MEAN, CLIP_STD)[None].to(self._device)
        text = open_clip.tokenize([prompt]).to(self._device)
        with torch.autocast(self._device, enabled=self._device == "cuda"):
            found = self._model(image, text)
        return float((found["image_features"] @ found["text_features"].T)[0, 0])


class Readme:
    """What calc_probs of PickScore's README does, restated for a transformers that returns outputs."""

    def __init__(self, folder: Path, device: str) -> None:
        from transformers import AutoModel, CLIPProcessor
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        self._device = device
        self._processor = CLIPProcessor(CLIPImageProcessorPil(), clip_tokenizer())
        self._model = AutoModel.from_pretrained(folder).eval().to(device)

    @torch.no_grad()
    def scores(self, prompt: str, images: Sequence[Image.Image]) -> list[float]:
        how: dict[str, Any] = {"return_tensors": "pt"}
        seen = self._processor(images=list(images), **how).to(self._device)
        read = self._processor(text=prompt, padding=True, truncation=True, max_length=77, **how).to(self._device)
        image = self._model.get_image_features(**seen).pooler_output
        image = image / image.norm(dim=-1, keepdim=True)
        text = self._model.get_text_features(**read).pooler_output
        text = text / text.norm(dim=-1, keepdim=True)
        scores = self._model.logit_scale.exp() * (text @ image.T)[0]
        return torch.softmax(scores, dim=-1).cpu().tolist()


def _make_images(root: Path, count: int, side: int) -> tuple[list[str], list[Path]]:
    """Write smooth random pictures as JPEG, and return a prompt and a path for each."""
    rng = np.random.default_rng(0)
    prompts, files = [], []
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (side // 16, side // 16, 3), dtype=np.uint8))
        path = root / f"{number}.jpg"
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(path, quality=90)
        prompts.append(f"a photograph of scene number {number // IMAGES_OF_A_PROMPT}, golden light, highly detailed")
        files.append(path)
    return prompts, files


def _make_hps(path: Path, size: Size) -> Path:
    torch.manual_seed(0)
    model = open_clip.create_model(size.name)
    torch.save({"state_dict": {name: tensor.half() for name, tensor in model.state_dict().items()}}, path)
    return path


def _make_pickscore(folder: Path, size: Size) -> Path:
    from transformers import CLIPConfig, CLIPModel

    shared = {"hidden_act": "gelu"}
    config = CLIPConfig(
        vision_config={**size.vision, **shared, "image_size": 224},
        text_config={**size.text, **shared, "vocab_size": 49408, "eos_token_id": 2},
        projection_dim=size.width,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    return folder


def _import_time(device: str) -> float:
    """Return the least seconds of five imports in fresh interpreters, by the clock of `Clock`."""
    now = "perf_counter" if device == "cuda" else "process_time"
    code = f"import time; start = time.{now}(); import rewards; print(time.{now}() - start)"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(5)]
    return min(float(run.stdout) for run in runs)


if __name__ == "__main__":
    main(sys.argv[1:])
