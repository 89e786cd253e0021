"""Which pairs a run trains on, which it holds out, and what happens to rows that cannot be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from palate.errors import UserError
from palate.readers import write_pairs
from palate.records import Media, Pair
from t2i.pairs import ImageSource, Subset
from t2i.settings import DataConfig
from tests.tiny import noise_image, noise_pairs


def parquet(path: Path, pairs: Sequence[Pair]) -> str:
    """Write pairs and return the path."""
    write_pairs(pairs, path)
    return str(path)


def many_prompts(count: int, per_prompt: int = 2) -> list[Pair]:
    """Return pairs of `count` prompts."""
    return [replace(p, prompt=f"prompt {k // per_prompt}") for k, p in enumerate(noise_pairs(count * per_prompt))]


def prompts_of(subset: Subset) -> list[str]:
    """Return the prompt of each pair."""
    return [subset.read(index)[0].prompt for index in range(len(subset))]


def broken(path: Path, count: int, bad: Sequence[int]) -> str:
    """Write pairs of which some have bytes that are no image."""
    rows: list[dict[str, Any]] = []
    for k, pair in enumerate(noise_pairs(count)):
        image = {"bytes": b"no image" if k in bad else pair.chosen.data, "path": None}
        rows.append({"prompt": f"prompt {k}", "chosen": image, "rejected": {"bytes": pair.rejected.data, "path": None}})
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def test_a_prompt_is_trained_on_or_held_out_never_both(tmp_path: Path) -> None:
    """A fifth of 40 prompts, by a hash of the prompt alone: the same division in any order of the rows."""
    pairs = many_prompts(40)
    source = ImageSource(DataConfig(path=parquet(tmp_path / "a.parquet", pairs), held_out=0.2))
    assert source.training is not None and source.held_out is not None
    kept, held = set(prompts_of(source.training)), set(prompts_of(source.held_out))
    assert not kept & held and len(kept | held) == 40 and 2 <= len(held) <= 16
    assert len(source.training) + len(source.held_out) == 80
    turned = ImageSource(DataConfig(path=parquet(tmp_path / "b.parquet", pairs[::-1]), held_out=0.2))
    assert turned.held_out is not None and set(prompts_of(turned.held_out)) == held


def test_one_prompt_is_for_training(tmp_path: Path) -> None:
    path = parquet(tmp_path / "one.parquet", many_prompts(1, per_prompt=6))
    source = ImageSource(DataConfig(path=path, held_out=0.999))
    assert source.training is not None and len(source.training) == 6 and source.held_out is None


@pytest.mark.parametrize("small", [{"held_out": 1e-9}, {"held_out_limit": 1}])
def test_a_run_that_holds_nothing_out_says_so(small: dict[str, Any], tmp_path: Path) -> None:
    """A share that no prompt is in, and a limit that the two pairs of a prompt do not fit in; 0 is what is asked for."""
    path = parquet(tmp_path / "a.parquet", many_prompts(10))
    source = ImageSource(DataConfig(path=path, **{"held_out": 0.5, **small}))
    assert (
        source.held_out is None
        and "so that nothing is measured: raise one of them, or give --data.held_out_path" in source.summary()
    )
    assert "nothing is measured" not in ImageSource(DataConfig(path=path, held_out=0)).summary()
    assert "nothing is measured" not in ImageSource(DataConfig(path=path, held_out=0.5)).summary()


def test_held_out_pairs_of_their_own_take_none_from_training(tmp_path: Path) -> None:
    path, other = (parquet(tmp_path / f"{n}.parquet", many_prompts(n)) for n in (10, 4))
    source = ImageSource(DataConfig(path=path, held_out=0.5, held_out_path=other, held_out_limit=5))
    assert source.training is not None and source.held_out is not None
    assert len(source.training) == 20 and len(source.held_out) == 5


def test_a_bad_row_ends_the_run_or_is_replaced_and_counted(tmp_path: Path) -> None:
    """Rows 2 and 3 are broken: an error names the first; skipped, row 4 stands in for both."""
    path = broken(tmp_path / "bad.parquet", 6, bad=(2, 3))
    strict = ImageSource(DataConfig(path=path, held_out=0.0))
    assert strict.training is not None
    assert strict.training.read(1)[0].prompt == "prompt 1"
    with pytest.raises(UserError, match=r"(?i)row 2.*--data\.on_bad_row skip"):
        strict.training.read(2)
    lenient = ImageSource(DataConfig(path=path, held_out=0.0, on_bad_row="skip"))
    assert lenient.training is not None
    assert prompts_of(lenient.training) == [f"prompt {k}" for k in (0, 1, 4, 4, 4, 5)]
    assert "Unreadable images met and replaced by the next pair: 3 times" in lenient.summary()


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    path = broken(tmp_path / "bad.parquet", 2, bad=(0, 1))
    source = ImageSource(DataConfig(path=path, held_out=0.0, on_bad_row="skip"))
    assert source.training is not None
    with pytest.raises(UserError, match="No row of the data can be read"):
        source.training.read(0)


def test_what_the_data_offer_is_counted(tmp_path: Path) -> None:
    pairs = noise_pairs(6)
    pairs[:2] = [replace(p, score_gap=1.0, meta={"score_unit": "points"}) for p in pairs[:2]]
    have = ImageSource(DataConfig(path=parquet(tmp_path / "a.parquet", pairs))).available()
    assert have["score_gap"] == "4 of 6 rows have none" and have["soft_labels"] is False and have["reference"] is True
    pairs[5] = replace(pairs[5], p_chosen=0.5)
    path = parquet(tmp_path / "b.parquet", pairs)
    assert ImageSource(DataConfig(path=path, ties="soft")).available()["soft_labels"] is True
    dropped = ImageSource(DataConfig(path=path, ties="drop", held_out=0.0))
    assert dropped.training is not None and len(dropped.training) == 5
    with pytest.raises(UserError, match="(?i)tie"):
        ImageSource(DataConfig(path=path, ties="error"))


def test_a_stream_goes_round_and_can_be_entered_anywhere(tmp_path: Path) -> None:
    """Five pairs, twelve positions: visits 0, 1, 2; from any place on, the rest of the sequence."""
    path = parquet(tmp_path / "five.parquet", many_prompts(5, per_prompt=1))
    source = ImageSource(DataConfig(path=path, streaming=True))

    def read(place: dict[str, Any], count: int) -> list[tuple[dict[str, Any], tuple[str, int]]]:
        found = islice(source.stream(place, needs=frozenset()), count)
        return [(after, (pictured[0].prompt, visit)) for after, (pictured, visit) in found]

    whole = read({"position": 0}, 12)
    assert [item for _, item in whole] == [(f"prompt {k % 5}", k // 5) for k in range(12)]
    assert [place["position"] for place, _ in whole] == list(range(1, 13))
    for start in (1, 4, 5, 7, 10):
        assert read(whole[start - 1][0], 12 - start) == whole[start:]


def test_a_stream_refuses_a_row_without_what_the_objective_needs(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", noise_pairs(3))
    source = ImageSource(DataConfig(path=path, streaming=True))
    with pytest.raises(UserError, match=r"Row 0 \(counted from 0\) has no score_gap"):
        next(source.stream({"position": 0}, needs=frozenset({"score_gap"})))
    dual = ImageSource(DataConfig(path=path, streaming=True, captions="dual"))
    with pytest.raises(UserError, match="has no prompt_chosen"):
        next(dual.stream({"position": 0}, needs=frozenset()))


def test_a_stream_of_ties_alone_is_no_endless_loop(tmp_path: Path) -> None:
    ties = [replace(p, p_chosen=0.5) for p in noise_pairs(3)]
    source = ImageSource(DataConfig(path=parquet(tmp_path / "a.parquet", ties), streaming=True, ties="drop"))
    with pytest.raises(UserError, match="There is no usable pair"):
        next(source.stream({"position": 0}, needs=frozenset()))


def test_images_of_other_shapes_and_modes_are_read(tmp_path: Path) -> None:
    odd = Pair(
        "a red circle", Media.image(noise_image(0, (30, 10)).convert("RGBA")), Media.image(noise_image(1).convert("L"))
    )
    source = ImageSource(DataConfig(path=parquet(tmp_path / "odd.parquet", [odd]), held_out=0.0))
    assert source.training is not None
    _, (chosen, rejected) = source.training.read(0)
    assert (chosen.mode, chosen.size) == ("RGB", (30, 10)) and (rejected.mode, rejected.size) == ("RGB", (16, 16))


def test_a_stream_says_at_the_end_what_it_left_out(tmp_path: Path) -> None:
    """Of six rows two are broken; one pass gives four pairs."""
    path = broken(tmp_path / "bad.parquet", 6, bad=(2, 3))
    source = ImageSource(DataConfig(path=path, streaming=True, on_bad_row="skip"))
    assert source.summary().endswith("streamed.")
    items = source.stream({"position": 0}, needs=frozenset())
    seen = [next(items)[1][0][0].prompt for _ in range(4)]
    assert seen == [f"prompt {k}" for k in (0, 1, 4, 5)]
    assert "4 pairs of 6 rows" in source.summary() and "2 bad rows" in source.summary()
