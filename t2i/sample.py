"""Images from a diffusers pipeline: the same prompt and seed give the same start, whatever the batch or the model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm.auto import tqdm

from palate.errors import UserError
from palate.hub import explain_hub_error, split_revision
from t2i.families import LONGEST_TEXT, left_out
from t2i.prompt_sets import read_prompt_set

FLAGGED = "flagged"


@dataclass(frozen=True)
class Sample:
    """One drawn image. A flagged one was blacked out by the pipeline's safety checker and must not be scored."""

    prompt: str
    seed: int
    image: Image.Image
    flagged: bool
    saturation: float
    """Share of final latent values beyond four times the latents' unit scale."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What else is recorded of it, as JSON can hold it."""


def load_pipeline(source: str, adapter: str | None = None, *, device: str | None = None) -> Any:
    """Return a diffusers pipeline from a folder or hub id[@revision], with a LoRA adapter folder on top if given.

    On a GPU it is loaded in bf16 (`device` defaults to the best there is), on a CPU in fp32. `source` may itself be an
    adapter folder that palate wrote: its `palate.yaml` names the base model. Raises UserError where nothing can be
    loaded.
    """
    from diffusers import DiffusionPipeline

    base, adapter = _base_of(source, adapter)
    path, revision = split_revision(base)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
    try:
        pipeline = DiffusionPipeline.from_pretrained(path, revision=revision, dtype=dtype, **left_out(path, revision))
    except (OSError, ValueError) as error:
        raise explain_hub_error(error, "model", base) from error
    if adapter:
        pipeline.load_lora_weights(adapter)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def check_model(source: str) -> None:
    """Raise UserError where `load_pipeline` would find no pipeline, before anything large is loaded or drawn."""
    from t2i.families import pipeline_class

    base, _ = _base_of(source, None)
    pipeline_class(*split_revision(base))


def _base_of(source: str, adapter: str | None) -> tuple[str, str | None]:
    folder = Path(source)
    if adapter or not folder.is_dir() or (folder / "model_index.json").is_file():
        return source, adapter
    if (folder / "model" / "model_index.json").is_file() or (folder / "model" / "palate.yaml").is_file():
        return _base_of(str(folder / "model"), None)
    if not (folder / "palate.yaml").is_file():
        raise UserError(
            f"{source} is neither a diffusers pipeline (no model_index.json) nor an adapter that palate wrote."
        )
    import yaml

    base = yaml.safe_load((folder / "palate.yaml").read_text(encoding="utf-8"))["model"]["path"]
    return base, source


def generate(
    pipeline: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int = 25,
    guidance: float = 7.5,
    batch_size: int = 16,
    side: int | None = None,
    max_sequence_length: int = 0,
    progress: str | None = None,
) -> Iterator[Sample]:
    """Yield one sample for each `(prompt, seed)`, in order, one to one.

    The start noise of an image depends on its seed alone, so two models (or one before and after training) are
    compared at equal seeds. max_sequence_length: tokens of a prompt in the long text encoder (T5, Gemma), 0 for the
    pipeline's own; raises UserError where it has none. `progress` names a progress bar.
    """
    if len(prompts) != len(seeds):
        raise ValueError(f"{len(prompts)} prompts but {len(seeds)} seeds; they go one to one.")
    own = {"height": side, "width": side} if side else {}
    if max_sequence_length:
        if "max_sequence_length" not in signature(pipeline.__call__).parameters:
            raise UserError(f"{type(pipeline).__name__} takes no max_sequence_length: leave it out.")
        if max_sequence_length > LONGEST_TEXT:
            raise UserError(
                f"max_sequence_length {max_sequence_length}: the pipelines draw with at most {LONGEST_TEXT}."
            )
        own["max_sequence_length"] = max_sequence_length
    with tqdm(total=len(prompts), desc=progress, disable=progress is None, unit="image") as bar:
        for begin in range(0, len(prompts), batch_size):
            part = slice(begin, begin + batch_size)
            how: dict[str, Any] = {
                "generator": [torch.Generator().manual_seed(seed) for seed in seeds[part]],
                "num_inference_steps": steps,
                "guidance_scale": guidance,
                **own,
            }
            for sample in finished(pipeline, prompts[part], seeds[part], **how):
                yield sample
                bar.update()


def finished(
    pipeline: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    extras: Sequence[Mapping[str, Any]] | None = None,
    **how: Any,
) -> list[Sample]:
    """Return the samples that one call of the pipeline draws; `how` is what it takes besides the prompts."""
    final: dict[str, torch.Tensor] = {}

    def keep(_pipe: Any, _step: int, _t: Any, state: dict[str, Any]) -> dict[str, Any]:
        final["latents"] = state["latents"]
        return {}

    output = pipeline(list(prompts), callback_on_step_end=keep, **how)
    saturated = (final["latents"].float().abs() > 4.0).flatten(1).float().mean(1).tolist()
    flags = getattr(output, "nsfw_content_detected", None) or [False] * len(output.images)
    rows = zip(prompts, seeds, output.images, flags, saturated, extras or [{} for _ in seeds], strict=True)
    return [Sample(prompt, seed, image, bool(flag), share, extra) for prompt, seed, image, flag, share, extra in rows]


def draw_folder(
    pipeline: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    folder: Path,
    *,
    model: str,
    by: Callable[..., Iterator[Sample]] | None = None,
    made: Mapping[str, Any] | None = None,
    **how: Any,
) -> Iterator[Sample]:
    """Draw into a folder with `metadata.jsonl` and yield what is new there; samples already there are not drawn again.

    Each line has file_name, prompt, seed, model, flagged, saturation. A folder drawn with other settings, or with a
    local model whose weight files have changed since, is refused. `by` draws instead of `generate`, with the settings
    `made` besides, as JSON can hold them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    told = ("steps", "guidance", "side", "max_sequence_length")
    settings = {"model": model, **{k: v for k, v in how.items() if k in told}, **(made or {})}
    settings["weights"] = _weights_stamp(model)
    stamp = folder / "settings.json"
    if stamp.exists() and json.loads(stamp.read_text(encoding="utf-8")) != json.loads(json.dumps(settings)):
        raise UserError(
            f"{folder} holds samples drawn with other settings or weights ({stamp.name}). Give another --out."
        )
    stamp.write_text(json.dumps(settings), encoding="utf-8")
    lines = folder / "metadata.jsonl"
    rows = read_folder(folder)
    if rows:  # a line that a kill tore would swallow the next one
        part = lines.with_suffix(".part")
        part.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        part.replace(lines)
    done = {(row["prompt"], row["seed"]) for row in rows}
    todo = [(p, s) for p, s in zip(prompts, seeds, strict=True) if (p, s) not in done]
    number = len(done)
    with lines.open("a", encoding="utf-8") as file:
        for sample in (by or generate)(pipeline, [p for p, _ in todo], [s for _, s in todo], **how):
            name = f"{number:06d}.png"
            sample.image.save(folder / name)
            row = {
                "file_name": name,
                "prompt": sample.prompt,
                "seed": sample.seed,
                "model": model,
                FLAGGED: sample.flagged,
                "saturation": round(sample.saturation, 5),
                **sample.extra,
            }
            file.write(json.dumps(row) + "\n")
            file.flush()
            number += 1
            yield sample


def _weights_stamp(model: str) -> str:
    """Return a hash of names, sizes and times of a local model's weight files; empty for a model of the hub."""
    root = Path(split_revision(model)[0])
    digest = blake2b(digest_size=8)
    files = sorted(p for p in root.rglob("*") if p.suffix in (".safetensors", ".bin")) if root.is_dir() else []
    for path in files:
        digest.update(f"{path.relative_to(root)} {path.stat().st_size} {path.stat().st_mtime_ns};".encode())
    return digest.hexdigest() if files else ""


def repeat_prompts(prompts: Sequence[str], per_prompt: int, seed: int = 0) -> tuple[list[str], list[int]]:
    """Return `per_prompt` copies of each prompt, and seeds that count up from `seed`: no two images share one."""
    repeated = [prompt for prompt in prompts for _ in range(per_prompt)]
    return repeated, list(range(seed, seed + len(repeated)))


def read_folder(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a sample folder's `metadata.jsonl`; a torn last line is left out."""
    path = folder / "metadata.jsonl"
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def read_prompts(source: str, limit: int = 0) -> list[str]:
    """Return the distinct prompts of a prompt set, the first `limit` of them; 0 takes all."""
    return read_prompt_set(source, limit).prompts
