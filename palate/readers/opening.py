"""From what a user typed (a file, a folder, a hub id) to a source of rows, or to advice."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from palate.errors import UserError
from palate.readers.json_rows import JsonRows
from palate.readers.reader import Rows
from palate.readers.sources import InOrder, LazyStream, Source, StreamSource, TableSource

if TYPE_CHECKING:
    import datasets

METADATA = "metadata.jsonl"
EXPECTED = (
    f"Expected a parquet file, a .json or .jsonl file, a folder of parquet files, a folder that datasets' save_to_disk "
    f"wrote, a folder with {METADATA}, or a hub id such as owner/name@revision."
)
# A hub id is two names with one slash; what else looks like a path is a path.
_HUB_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[^@\s]+))?")
_OTHER_SPLIT = re.compile(r"(test|val|valid|validation|dev|eval)(?![a-z])")


def open_table(path: str, split: str, revision: str | None) -> Source:
    """Return the rows at `path` by number. Raises UserError if there is nothing that palate can read."""
    source = _local(path, split, revision)
    if isinstance(source, list):
        return TableSource(path, _parquet(path, source, split, streaming=False), Rows(root=Path(source[0]).parent))
    if source is not None:
        return source
    repo, revision = _hub_id(path, revision)
    return TableSource(path, _from_hub(repo, revision, split, streaming=False), Rows())


def open_stream(path: str, split: str, revision: str | None) -> StreamSource:
    """Return the rows at `path` in order, without storing anything on disk. Raises UserError as `open_table` does."""
    source = _local(path, split, revision)
    if isinstance(source, list):
        files = source
        stream = _parquet(path, files, split, streaming=True)

        def explain(error: Exception, row: int) -> NoReturn:
            raise UserError(
                f"Reading {path!r} stopped at row {row} ({_said(error)}). Write the file again, or start after it."
            ) from error

        return LazyStream(path, stream, Rows(root=Path(files[0]).parent), lambda: files, explain)
    if source is not None:
        return InOrder(source)
    repo, revision = _hub_id(path, revision)

    def explain_hub(error: Exception, row: int) -> NoReturn:
        _explain(error, repo, revision, split, row)

    stream = _from_hub(repo, revision, split, streaming=True)
    return LazyStream(path, stream, Rows(), lambda: _hub_files(repo, revision, split), explain_hub)


def _local(path: str, split: str, revision: str | None) -> Source | list[str] | None:
    """Return the source at a local path, or the parquet files there; None if `path` is a hub id."""
    here = Path(path).expanduser()
    try:
        exists = here.exists()
    except (OSError, ValueError) as error:
        raise UserError(f"Cannot open {path[:200]!r}: {error}. {EXPECTED}") from None
    files = [] if exists else sorted(glob.glob(str(here))) if "*" in path else []
    if not exists and not files:
        if _HUB_ID.fullmatch(path) and not path.endswith(".parquet"):
            return None
        raise UserError(f"There is nothing at {path!r}. {EXPECTED}")
    if revision is not None:
        raise UserError(f"{path!r} is on this machine, so it has no revision {revision!r}. Leave the revision out.")
    if files or here.is_file():
        _whole(path, split)
        files = files or [str(here)]
        if files == [str(here)] and here.suffix in (".json", ".jsonl"):
            return JsonRows(here, absolute=True)
        if not all(file.endswith(".parquet") for file in files):
            raise UserError(f"{path!r} is not a parquet file. {EXPECTED}")
        return files
    if (here / METADATA).is_file():
        _whole(path, split)
        return JsonRows(here / METADATA, absolute=False)
    if (here / split / METADATA).is_file():
        return JsonRows(here / split / METADATA, absolute=False)
    if (here / "state.json").is_file() or (here / "dataset_dict.json").is_file():
        return TableSource(path, _saved(here, split), Rows(root=here))
    return _files_of(here, split)


def _whole(path: str, split: str) -> None:
    if split != "train":
        raise UserError(
            f"{path!r} has no split {split!r}: it is one whole. Leave the split at 'train', or name a path."
        )


def _files_of(folder: Path, split: str) -> list[str]:
    """Return the parquet files of a split, from the folder itself, its data/ and the split's own folder.

    A file of the split is named for it (split.parquet, split-00000-of-00002.parquet) or lies in a folder named for it.
    If there is none, "train" is all files but those named for another split.
    """
    here = sorted([*folder.glob("*.parquet"), *folder.glob("data/*.parquet")])
    own = sorted([*folder.glob(f"{split}/*.parquet"), *folder.glob(f"data/{split}/*.parquet")])
    if not here and not own:
        raise UserError(f"The folder {str(folder)!r} holds no data that palate knows. {EXPECTED}")
    chosen = own or [file for file in here if file.stem.split("-")[0] == split]
    if not chosen and split == "train":
        chosen = [file for file in here if not _OTHER_SPLIT.match(file.stem)]
    if not chosen:
        found = ", ".join(str(file.relative_to(folder)) for file in here[:5])
        raise UserError(
            f"The folder {str(folder)!r} has no parquet file of the split {split!r}; it holds {found}"
            f"{' and more' if len(here) > 5 else ''}. Name a split that is there, or give a file's path."
        )
    return [str(file) for file in chosen]


def _saved(folder: Path, split: str) -> datasets.Dataset:
    import datasets as hf

    try:
        saved = hf.load_from_disk(str(folder))
    except Exception as error:
        raise UserError(f"Cannot open the saved dataset {str(folder)!r} ({_said(error)}). Save it again.") from error
    if isinstance(saved, hf.DatasetDict):
        if split not in saved:
            raise UserError(f"{str(folder)!r} has no split {split!r}. It has: {', '.join(saved)}.")
        return saved[split]
    if split not in ("train", str(saved.split)):
        raise UserError(f"{str(folder)!r} has no split {split!r}: it is one whole. Leave the split at 'train'.")
    return saved


def _parquet(path: str, files: list[str], split: str, streaming: bool) -> Any:
    import datasets as hf
    import pyarrow as pa
    import pyarrow.parquet as pq

    for file in files:
        try:
            pq.read_schema(file)
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{file!r} is not a readable parquet file ({_said(error)}). Write it again.") from error
    try:
        return hf.load_dataset("parquet", data_files={split: files}, split=split, streaming=streaming)
    except Exception as error:
        raise UserError(
            f"Cannot read the parquet files at {path!r} ({_said(error)}). Check that all have the same columns."
        ) from error


def _hub_id(path: str, revision: str | None) -> tuple[str, str | None]:
    match = _HUB_ID.fullmatch(path)
    assert match is not None
    if revision is not None and match["revision"] not in (None, revision):
        raise UserError(f"{path!r} names the revision {match['revision']!r} and the option {revision!r}. Give one.")
    return match["repo"], match["revision"] or revision


def _from_hub(repo: str, revision: str | None, split: str, streaming: bool) -> Any:
    import datasets as hf

    try:
        return hf.load_dataset(repo, split=split, revision=revision, streaming=streaming)
    except Exception as error:
        _explain(error, repo, revision, split)


def _hub_files(repo: str, revision: str | None, split: str) -> list[str]:
    """Return the addresses of a split's files if all are parquet, else none."""
    import datasets as hf

    found = hf.load_dataset_builder(repo, revision=revision).config.data_files or {}
    files = [str(file) for file in found.get(split, [])]
    return files if all(file.endswith(".parquet") for file in files) else []


def _explain(error: Exception, repo: str, revision: str | None, split: str, row: int = 0) -> NoReturn:
    """Raise the UserError that says what to do about an error of the hub's client."""
    if isinstance(error, UserError):
        raise error
    name = f"{repo}@{revision}" if revision else repo
    page = f"https://huggingface.co/datasets/{repo}"
    said = _said(error)
    text = " ".join(f"{type(e).__name__} {e}" for e in _chain(error))
    if "gated" in text.lower():
        advice = f"it is gated. Accept its terms at {page}, then log in with `hf auth login` or set HF_TOKEN."
    elif "OfflineMode" in text or "offline mode" in text.lower():
        advice = (
            "this machine is told to stay offline (HF_HUB_OFFLINE=1) and has no copy of it. Unset the variable, or "
            f"fetch it elsewhere with `hf download {repo} --repo-type dataset --local-dir FOLDER` and give that folder."
        )
    elif "RevisionNotFound" in text or re.search(r"Revision '.*' doesn't exist", text):
        advice = f"the revision {revision!r} is not there. See the branches and tags at {page}/tree/main."
    elif moved := re.search(r"\b30[1278]\b|moved", text):
        advice = f"it has moved ({moved[0]}). Open {page}, which leads to its new name, and give that."
    elif re.search(r"RepositoryNotFound|doesn't exist on the Hub|\b40[134]\b|\b410\b", text):
        advice = f"it is missing, renamed or private. Check the name at {page}; if it is private, run `hf auth login`."
    elif re.search(r"[Ss]plit", said):
        advice = f"the split {split!r} is not there: {said}."
    elif isinstance(error, (ConnectionError, TimeoutError)) or "Connect" in text or "Timeout" in text:
        advice = f"the hub does not answer ({said}). Check the network, or give the path of a local copy."
    else:
        advice = f"it cannot be read ({said}). Look at {page}; if it has several configurations, give local files."
    where = (
        f"Reading the hub's dataset {name!r} stopped at row {row}" if row else f"Cannot open the hub's dataset {name!r}"
    )
    raise UserError(f"{where}: {advice}") from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _said(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200].rstrip('.')}" if lines else type(error).__name__
