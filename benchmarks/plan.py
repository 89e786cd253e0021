"""What `palate plan` predicts against what a process takes: `python -m benchmarks.plan`.

Each case trains a random Stable Diffusion in a process of its own, on a CPU at a quarter of 1.5's widths and half of its
side, on a GPU in its full shape and bf16. Predicted is what tensors hold. Measured on a GPU is what torch allocated at
most; on a CPU it is the peak of the process less what it held before the model was there: the interpreter, libraries, and
what those keep after a first run, of the toy's model. glibc is told to return freed blocks at once: what fragmentation adds
is chance.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.measuring import best_device, held, in_its_own_process, machine, peak, write_section
from benchmarks.t2i_step import noise_pairs, random_pipeline

TITLE = "## Predicted and measured memory"
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "full": ("full fine-tuning, DPO", {"model.tuning": "full"}),
    "split": ("full fine-tuning, split pair", {"model.tuning": "full", "model.split_pair": True}),
    "lora": ("LoRA", {"model.tuning": "lora"}),
    "checkpointing": ("LoRA, checkpointing", {"model.tuning": "lora", "model.gradient_checkpointing": True}),
    "int8": (
        "LoRA on int8, checkpointing",
        {"model.tuning": "lora", "model.gradient_checkpointing": True, "model.quantise": "int8"},
    ),
    "cached": (
        "LoRA, cached latents, texts and reference",
        {"model.tuning": "lora", "data.cache": "cache", "reference.kind": "cached"},
    ),
}


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plan", description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="", help="cpu or cuda (default: cuda if there is one)")
    parser.add_argument("--pairs", type=int, default=4, help="pairs in the batch (default: 4)")
    parser.add_argument("--only", nargs="*", choices=CASES, default=list(CASES), help="cases (default: all)")
    parser.add_argument("--write", action="store_true", help="write the section of benchmarks/RESULTS.md")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    args = parser.parse_args(list(argv))
    if args.case:
        print(json.dumps(_measure(args)))
        return
    args.device = args.device or best_device()
    options = ["--device", args.device, "--pairs", str(args.pairs)]
    os.environ["MALLOC_MMAP_THRESHOLD_"] = (
        "65536"  # glibc gives freed blocks back, so that the process holds what lives
    )
    found = {case: in_its_own_process("benchmarks.plan", case, options) for case in args.only}
    lines = _table(found)
    print("\n".join(lines))
    if args.write:
        head = (
            f"`python -m benchmarks.plan --device {args.device} --pairs {args.pairs}`, {date.today()}, "
            f"{machine(args.device)}. GiB above what the process held before; step times in s."
            + ("" if args.device == "cuda" else " MALLOC_MMAP_THRESHOLD_ is 65536: without it freed blocks count too.")
        )
        write_section(TITLE, "\n".join([head, "", *lines]))


def _table(found: dict[str, dict[str, Any]]) -> list[str]:
    lines = [
        "| | predicted | measured | off by | predicted step | measured step |",
        "|---|---|---|---|---|---|",
    ]
    for case, one in found.items():
        off = one["predicted"] / one["measured"] - 1
        lines.append(
            f"| {CASES[case][0]} | {one['predicted']:.3f} | {one['measured']:.3f} | {100 * off:+.1f} % | "
            f"{one['predicted_step']:.2f} | {one['measured_step']:.2f} |"
        )
    worst = max(abs(one["predicted"] / one["measured"] - 1) for one in found.values())
    return [*lines, "", f"The largest deviation in memory is {100 * worst:.1f} % (aim: 15 %)."]


def _measure(args: argparse.Namespace) -> dict[str, Any]:
    """Train a few steps of one case and return GiB and seconds, predicted and measured; nothing else ran here."""
    import torch

    from palate.config import load_config
    from t2i.plan import predict
    from t2i.settings import T2IConfig
    from t2i.throughput import rates
    from t2i.train import quiet_libraries, train

    cpu = args.device == "cpu"
    quiet_libraries()
    if cpu:
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _make(args, folder)
        settings = {
            "model.path": str(folder / "sd"),
            "data.path": str(folder / "pairs.parquet"),
            "out": str(folder / "run"),
            "train.precision": "fp32" if cpu else "bf16",
            "train.cpu": cpu,
            "train.steps": 3,
            "train.batch_size": args.pairs,
            "log.every": 1,
            "log.trackers": [],
            "eval.every": 0,
            "checkpoint.every": 0,
            "model.lora_rank": 8,
            "objective.terms": [{"objective": "dpo"}],
            **CASES[args.case][1],
        }
        small = {**settings, "model.path": "toy:sd", "out": str(folder / "first"), "train.batch_size": 1}
        if "data.cache" in settings:
            settings["data.cache"], small["data.cache"] = str(folder / "cache"), str(folder / "first_cache")
        train(*load_config(T2IConfig, _words(small), "benchmarks.plan"))  # takes what libraries take in any first run
        config, resolved = load_config(T2IConfig, _words(settings), "benchmarks.plan")
        found = predict(config, args.device)
        products, convolutions = rates(torch.device(args.device), config.train.precision)
        gc.collect()
        base = held(args.device)
        tops, seconds = _watched(train, config, resolved, args.device)
    return {
        "predicted": found.peak / 2**30,
        "measured": tops - base,
        "predicted_step": found.products / products + found.convolutions / convolutions,
        "measured_step": seconds,
    }


def _words(settings: dict[str, Any]) -> list[str]:
    return [w for k, v in settings.items() for w in (f"--{k}", v if isinstance(v, str) else json.dumps(v))]


def _watched(train: Any, config: Any, resolved: str, device: str) -> tuple[float, float]:
    """Return the peak of the training steps in GiB, before the model is saved, and the median seconds of a step."""
    from palate.training import loop

    marks: list[float] = []
    tops: list[float] = []
    take, save = loop._Run._optimize, loop._Run._save

    def timed(run: Any) -> Any:
        if not marks:
            held(device)
        start = time.perf_counter()
        report = take(run)
        marks.append(time.perf_counter() - start)
        return report

    def seen(run: Any) -> None:
        tops.append(peak(device))
        save(run)

    loop._Run._optimize, loop._Run._save = timed, seen  # type: ignore[method-assign]
    train(config, resolved)
    return tops[0], sorted(marks[1:])[len(marks[1:]) // 2]


def _make(args: argparse.Namespace, folder: Path) -> None:
    """Write the pipeline and the pairs in a process of their own, so that making them leaves nothing here."""
    import multiprocessing

    process = multiprocessing.get_context("fork").Process(target=_write, args=(args, folder))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit("The model could not be made.")


def _write(args: argparse.Namespace, folder: Path) -> None:
    import torch

    from palate.readers import write_pairs
    from palate.records import Media, Pair

    torch.manual_seed(0)
    pipeline = random_pipeline("sd", args.device)
    side = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    pipeline.to("cpu").save_pretrained(folder / "sd")
    pairs = [
        Pair(prompt, Media.image(chosen), Media.image(rejected))
        for prompt, chosen, rejected in noise_pairs(4 * args.pairs, side)
    ]
    write_pairs(pairs, folder / "pairs.parquet")


if __name__ == "__main__":
    main(sys.argv[1:])
