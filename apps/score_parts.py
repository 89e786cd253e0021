"""The finished chunks of a `palate score`, kept beside the output, so that a run that was stopped goes on from there.

OUT.parts holds what the run is about (run.json) and one small parquet file per chunk, written under another name first.
Any number of processes may write chunks; one puts them together, in order, at the end.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apps.score_source import Failure, Item
from palate import __version__
from palate.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

    from apps.score_source import Source
    from rewards import ScoreBatch


class Parts:
    """Chunks of `size` rows of a source, scored by scorers of certain names. run: what must be equal to go on."""

    def __init__(self, out: Path, source: Source, scorers: Sequence[str], size: int, run: dict[str, Any]) -> None:
        self.folder, self._out = out.with_suffix(".parts"), out
        self._source, self._scorers, self._size = source, scorers, size
        self._run = {"palate": __version__, "rows": source.count, "data": source.identity, "chunk": size, **run}

    def open(self) -> None:
        """Make the folder, or check that it holds a stopped run of the very same; UserError if of another."""
        stated = self.folder / "run.json"
        if stated.is_file():
            try:
                found = json.loads(stated.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                found = {}
            other = [name for name in self._run if found.get(name) != self._run[name]]
            if other:
                raise UserError(
                    f"{self.folder} holds a run that was stopped, of another kind than this one: {', '.join(other)} "
                    "differ. Finish that run with its own command, delete the folder, or name another --out."
                )
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self._replace(stated, lambda path: path.write_text(json.dumps(self._run, indent=1), encoding="utf-8"))

    def missing(self) -> list[int]:
        """Return the numbers of the chunks that are not there yet."""
        return [n for n in range(-(-self._source.count // self._size)) if not self._path(n).is_file()]

    def rows(self, chunk: int) -> range:
        """Return the source's rows of a chunk."""
        return range(chunk * self._size, min((chunk + 1) * self._size, self._source.count))

    def write(
        self, chunk: int, items: Sequence[Item], batches: Sequence[ScoreBatch], failures: Sequence[Failure]
    ) -> None:
        """Keep the scores of a chunk. failures: of reading; those of scoring are in the batches."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        sides = self._source.sides
        columns: dict[str, Any] = {"row": pa.array([item.row for item in items], pa.int64())}
        for name, kind in self._source.columns.items():
            columns[name] = pa.array([item.columns[name] for item in items], kind)
        columns["prompt"] = pa.array([item.prompt for item in items], pa.string())
        made_by, truncated = {}, {}
        listed = list(failures)
        for scorer, batch in zip(self._scorers, batches, strict=False):
            for place, side in enumerate(sides):
                values = pa.array(batch.values[place :: len(sides)], pa.float64(), from_pandas=True)  # NaN -> null
                columns[_column(scorer, side)] = values
            made_by[scorer] = {name: getattr(batch, name) for name in ("unit", "weights", "preprocess", "dtype")}
            truncated[scorer] = len(batch.truncated)
            for place, reason in sorted(batch.failures.items()):
                item, side = items[place // len(sides)], sides[place % len(sides)]
                listed.append(Failure(item.row, scorer, f"{side}: {reason}" if side else reason))
        for name in [_column(scorer, side) for scorer in self._scorers for side in sides]:
            columns.setdefault(name, pa.array([], pa.float64()))  # no row of the chunk could be read
        said = {"made_by": made_by, "truncated": truncated, "failures": [asdict(failure) for failure in listed]}
        table = pa.table(columns).replace_schema_metadata({"palate": json.dumps(said)})
        self._replace(self._path(chunk), lambda path: pq.write_table(table, path))

    def put_together(self) -> tuple[pa.Table, list[Failure], dict[str, int]]:
        """Write the output, remove the chunks, and return the table, all failures, and how many prompts were cut."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        tables, failures, truncated = [], list(self._source.failures), dict.fromkeys(self._scorers, 0)
        made_by: dict[str, Any] = {}
        for table in self._tables():
            said = json.loads(table.schema.metadata[b"palate"])
            failures += [Failure(**failure) for failure in said["failures"]]
            made_by |= said["made_by"]
            for scorer, count in said["truncated"].items():
                truncated[scorer] += count
            tables.append(table.replace_schema_metadata(None))
        whole = pa.concat_tables(tables)
        if not len(whole):
            reasons = "; ".join(f"row {failure.row}: {failure.reason}" for failure in failures[:3])
            shutil.rmtree(self.folder)
            raise UserError(f"There is nothing to score. {reasons}".strip())
        whole = whole.replace_schema_metadata({"palate": json.dumps({"palate": __version__, "scorers": made_by})})
        self._replace(self._out, lambda path: pq.write_table(whole, path))
        shutil.rmtree(self.folder)
        return whole, sorted(failures, key=lambda failure: failure.row), truncated

    def _tables(self) -> Iterator[pa.Table]:
        import pyarrow.parquet as pq

        for chunk in range(-(-self._source.count // self._size)):
            yield pq.read_table(self._path(chunk))

    def _path(self, chunk: int) -> Path:
        return self.folder / f"{chunk:08d}.parquet"

    def _replace(self, path: Path, write: Any) -> None:
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        write(part)
        os.replace(part, path)


def _column(scorer: str, side: str) -> str:
    return f"{scorer}/{side}" if side else scorer
