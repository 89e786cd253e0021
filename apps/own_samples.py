"""`palate own-samples`: pair your images with a model's own samples for their prompts, to train it towards yours (PSO)."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from palate.errors import UserError

if TYPE_CHECKING:
    from palate.records import Media


def main(argv: Sequence[str]) -> None:
    """Draw what is missing, and write the pairs."""
    parser = argparse.ArgumentParser(prog="palate own-samples", description=__doc__)
    parser.add_argument("--model", required=True, help="pipeline folder, adapter folder that palate wrote, or hub id")
    parser.add_argument(
        "--data",
        required=True,
        help="images with prompts: pairs (their chosen images), a table, or a folder with metadata.jsonl",
    )
    parser.add_argument(
        "--out", required=True, type=Path, help=".parquet file for the pairs; samples go to OUT.samples"
    )
    parser.add_argument("--limit", type=int, help="use the first so many rows (default: all)")
    parser.add_argument("--per-image", type=int, default=1, help="samples for each image (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="key of the samples' noise (default: 0)")
    parser.add_argument("--steps", type=int, default=4, help="denoising steps (default: 4)")
    parser.add_argument("--guidance", type=float, default=0.0, help="classifier-free guidance scale (default: 0)")
    parser.add_argument("--side", type=int, help="side of the samples in pixels (default: the model's)")
    parser.add_argument(
        "--max-sequence-length",
        type=int,
        default=0,
        help="tokens of the long text (SD3, FLUX.1, Sana; default: the model's)",
    )
    parser.add_argument("--batch-size", type=int, default=16, help="images per forward (default: 16)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: the best there is)")
    args = parser.parse_args(list(argv))
    if args.out.suffix != ".parquet":
        raise UserError(f"--out {args.out} should end in .parquet.")
    for name in ("per_image", "steps", "batch_size"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(args, name)}.")

    from t2i.own_samples import pair_with_own_samples
    from t2i.sample import check_model
    from t2i.train import quiet_libraries

    quiet_libraries()
    check_model(args.model)
    targets, bad = read_targets(args.data, args.limit)
    how = {"steps": args.steps, "guidance": args.guidance, "batch_size": args.batch_size, "side": args.side}
    if args.max_sequence_length:
        how["max_sequence_length"] = args.max_sequence_length
    count = pair_with_own_samples(
        targets, args.model, args.out, per_image=args.per_image, seed=args.seed, how=how, device=args.device
    )
    print(f"{count} pairs in {args.out}." + (f" {bad} rows could not be read and were left out." if bad else ""))


def read_targets(data: str, limit: int | None) -> tuple[list[tuple[str, Media]], int]:
    """Return the prompts and images of a source, of pairs the chosen ones, and how many rows could not be read."""
    from apps.score_source import Failure, open_source
    from palate.records import Media

    source = open_source(data, limit)
    rows = [source.read(index) for index in range(source.count)]
    targets = []
    for row in rows:
        if isinstance(row, Failure) or not row.prompt.strip():
            continue
        image = row.images[0]
        try:
            media = image if isinstance(image, Media) else Media.image(image)  # type: ignore[arg-type]
            media.decode()
        except UserError:
            continue
        targets.append((row.prompt, media))
    if not targets:
        raise UserError(f"{data} holds no image with a prompt.")
    return targets, len(source.failures) + len(rows) - len(targets)
