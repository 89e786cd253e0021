"""`palate score`: score an image folder, a table or pairs with reward models; write one column per scorer."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palate.errors import UserError, run

if TYPE_CHECKING:
    import pyarrow as pa

    from apps.score_parts import Parts
    from apps.score_source import Failure, Item, Source
    from rewards import Scorer

BATCHES_PER_CHUNK = 4  # What is in memory at once, and lost at most when a run is killed.
BATCH = 64
SHOWN_FAILURES = 10


def main(argv: Sequence[str]) -> None:
    """Score what can be scored, write it, print a summary, and exit with status 1 if rows failed."""
    parser = argparse.ArgumentParser(
        prog="palate score",
        description=__doc__,
        epilog="Writes the identifying columns and one column per scorer; for pairs NAME/chosen and NAME/rejected. Rows "
        "that fail are empty there, and listed with their reasons in OUT.failed.jsonl. A run that is stopped goes on when "
        "the same command is given again. Several GPUs: accelerate launch -m apps.score, with the same options.",
    )
    parser.add_argument(
        "--scorer",
        action="append",
        required=True,
        help="hpsv2.1, pickscore, imagereward, aesthetic-v2, clipscore, toy, ...; NAME:PATH for your own copy of the "
        "weights; open_clip:ARCHITECTURE:WEIGHTS, a folder, hf-hub:owner/name or module:attribute; may be repeated",
    )
    parser.add_argument(
        "--data",
        required=True,
        help="folder of images, with metadata.jsonl (file_name, prompt) or with a .txt beside each; a table with a "
        "prompt and an image column, or pairs: parquet, folder, hub id",
    )
    parser.add_argument("--out", required=True, type=Path, help="parquet file to write")
    parser.add_argument("--limit", type=int, help="score the first so many rows (default: all)")
    parser.add_argument("--batch-size", type=int, help="images encoded at once (default: the scorer's own, mostly 64)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: the best there is)")
    parser.add_argument("--cache", type=Path, help="folder that keeps embeddings for the next time (default: none)")
    args = parser.parse_args(list(argv))
    if args.out.suffix != ".parquet":
        raise UserError(f"--out must end in .parquet; got {args.out}.")
    for name in ("limit", "batch_size"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1; got {getattr(args, name)}.")

    from apps.score_parts import Parts
    from apps.score_source import open_source, whereabouts
    from rewards import load_scorer

    group = _Group()
    source = open_source(args.data, args.limit)
    options = {"device": args.device or group.device, "batch_size": args.batch_size, "cache": args.cache}
    scorers = [load_scorer(name, **options) for name in args.scorer]
    names = [scorer.name for scorer in scorers]
    if len(set(names)) < len(names):
        raise UserError(
            f"Two of the scorers call themselves the same: {', '.join(names)}. Score with one of them at a time."
        )
    asked = {s.name: [getattr(s, part, "") for part in ("unit", "weights", "preprocess", "dtype")] for s in scorers}
    run = {"path": whereabouts(args.data), "scorers": asked}
    parts = Parts(args.out, source, names, BATCHES_PER_CHUNK * (args.batch_size or BATCH), run)
    if group.first:
        parts.open()
    group.wait()
    missing = parts.missing()
    group.wait()  # all have looked before anyone adds to them, so that all share out the same
    _score(source, scorers, parts, missing, group)
    group.wait()
    if group.first:
        _report(parts, source, scorers, args.out)


class _Group:
    """This process among those that `accelerate launch` started; alone without it."""

    def __init__(self) -> None:
        self.rank, self.size = 0, 1
        self.device: str | None = None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from datetime import timedelta

            import torch
            from accelerate import PartialState
            from accelerate.utils import parse_flag_from_env

            cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
            # One process may wait for another's last chunk for long.
            self._state = PartialState(cpu=cpu, timeout=timedelta(days=7))
            self.rank, self.size = self._state.process_index, self._state.num_processes
            self.device = str(self._state.device)

    @property
    def first(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            self._state.wait_for_everyone()


def _score(source: Source, scorers: Sequence[Scorer], parts: Parts, missing: Sequence[int], group: _Group) -> None:
    """Score this process's share of the chunks that are missing. Rows are read ahead while the models work."""
    from tqdm import tqdm

    from rewards import score_together

    mine = missing[group.rank :: group.size]
    total, left = source.count, sum(len(parts.rows(chunk)) for chunk in missing)
    if total > left and group.first:
        print(f"Going on with a run that was stopped: {total - left} of {total} rows are scored.", file=sys.stderr)
    todo = sum(len(parts.rows(chunk)) for chunk in mine)
    done = 0
    try:
        with tqdm(total=todo, desc="score", unit="row", disable=None if group.first else True) as bar:
            for chunk, items, failures in _read_ahead(source, parts, mine):
                rows = [(item.prompt, image) for item in items for image in item.images]
                prompts, images = [prompt for prompt, _ in rows], [image for _, image in rows]
                parts.write(chunk, items, score_together(scorers, prompts, images) if rows else (), failures)
                done += len(parts.rows(chunk))
                bar.update(len(parts.rows(chunk)))
    except BaseException:
        kept = total - left + done
        print(f"\nBroke off; {kept} rows or more are kept. Give the same command again to go on.", file=sys.stderr)
        raise


def _read_ahead(source: Source, parts: Parts, chunks: Sequence[int]) -> Iterator[tuple[int, list[Item], list[Failure]]]:
    """Yield the chunks with the rows that could be read, and those that could not; the next is read meanwhile."""
    from apps.score_source import Item

    with ThreadPoolExecutor(thread_name_prefix="read") as pool:
        ahead = [pool.submit(source.read, row) for row in parts.rows(chunks[0])] if chunks else []
        for place, chunk in enumerate(chunks):
            found = [future.result() for future in ahead]
            if place + 1 < len(chunks):
                ahead = [pool.submit(source.read, row) for row in parts.rows(chunks[place + 1])]
            items = [row for row in found if isinstance(row, Item)]
            yield chunk, items, [row for row in found if not isinstance(row, Item)]


def _report(parts: Parts, source: Source, scorers: Sequence[Scorer], out: Path) -> None:
    """Put the chunks together, print what they say, list the failures, and exit with status 1 if there are any."""
    table, failures, truncated = parts.put_together()
    for line in _summary(table, source, scorers):
        print(line)
    for name, count in truncated.items():
        if count:
            print(f"{name}: {count} prompts were longer than the model reads; their ends were cut off.")
    print(f"{len(table)} rows in {out}.")
    listing = out.with_suffix(".failed.jsonl")
    listing.unlink(missing_ok=True)
    if failures:
        listing.write_text("".join(json.dumps(asdict(failure)) + "\n" for failure in failures), encoding="utf-8")
        print(f"\n{len(failures)} scores failed:", file=sys.stderr)
        for failure in failures[:SHOWN_FAILURES]:
            print(f"  row {failure.row} ({failure.scorer or 'reading'}): {failure.reason}", file=sys.stderr)
        print(f"All of them: {listing}", file=sys.stderr)
        sys.exit(1)


def _summary(table: pa.Table, source: Source, scorers: Sequence[Scorer]) -> Iterator[str]:
    """Yield a line per scorer: the mean score, or how often it agrees with the labels of pairs that are no ties."""
    import numpy as np

    from palate.statistics import mean_interval, share

    def values(name: str) -> Any:
        return table[name].to_numpy()

    prompts = table["prompt"].to_pylist()
    for scorer in scorers:
        if source.sides == ("",):
            found = mean_interval(values(scorer.name), clusters=prompts)
            yield f"{scorer.name}: mean {found} {scorer.unit}, {found.n} images"
            continue
        label = np.sign(values("p_chosen") - 0.5)
        decided = label != 0
        gaps = values(f"{scorer.name}/chosen") - values(f"{scorer.name}/rejected")
        agrees = 0.5 + 0.5 * label * np.sign(gaps)
        found = share(agrees[decided], clusters=[p for p, keep in zip(prompts, decided, strict=True) if keep])
        yield (
            f"{scorer.name}: agrees with {found} of {found.n} labels "
            f"(label ties left out: {int((~decided).sum())}; equal scores count half)"
        )


if __name__ == "__main__":
    run(lambda: main(sys.argv[1:]))
