"""The arena measured: votes and sessions that a server takes, and the ratings.

python -m benchmarks.arena api [options]; api --help lists them
python -m benchmarks.arena speed|resolve|coverage|peeking ... [--votes N] [--resamples N] [--write]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence


def main(argv: Sequence[str]) -> None:
    """Run the named measurements: of the server alone with its options, or several of the ratings."""
    if argv[:1] == ["api"]:
        from benchmarks import arena_api

        return arena_api.main(argv[1:])
    from benchmarks.arena_ratings import TASKS, speed

    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m benchmarks.arena", description=__doc__, formatter_class=formatter)
    parser.add_argument("task", nargs="+", choices=TASKS)
    parser.add_argument("--votes", type=int, default=1_000_000, help="of speed (default: 1000000)")
    parser.add_argument("--resamples", type=int, default=1000, help="of speed (default: 1000)")
    parser.add_argument("--write", action="store_true", help="speed: write the section of benchmarks/RESULTS.md")
    args = parser.parse_args(argv)
    for task in args.task:
        if task == "speed":
            speed(args.votes, resamples=args.resamples, write=args.write)
        else:
            TASKS[task]()


if __name__ == "__main__":
    main(sys.argv[1:])
