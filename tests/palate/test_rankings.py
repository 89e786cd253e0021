"""Rankings in the formats of HPDv2 and ImageRewardDB."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from palate.errors import UserError
from palate.readers import BadRow
from palate.readers.rankings import RANKINGS, is_rankings, open_rankings

REAL = Path(__file__).parents[3] / "shared" / "data" / "imagereward" / "test.json"


def written(folder: Path, rows: Any, name: str = "test.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(rows))
    return path


def hpd(**changes: Any) -> dict[str, Any]:
    row = {"prompt": "a cat", "image_path": ["1.png", "2.png", "3.png"], "rank": [2, 1, 3]}
    return {**row, "raw_annotations": [[2, 1, 3], {"rank": [1, 2, 3], "user_hash": "u"}], **changes}


def test_hpdv2_test(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    (ranking,) = open_rankings(written(tmp_path, [hpd()]))
    assert ranking.scores == (-2, -1, -3) and ranking.unit == "negative rank" and ranking.source == "hpdv2"
    assert ranking.meta["annotators"] == [[-2, -1, -3], [-1, -2, -3]]
    assert [Path(o.path or "") for o in ranking.outputs] == [tmp_path / "test" / f"{k}.png" for k in (1, 2, 3)]


@pytest.mark.parametrize("column", ["image_path", "file_path"])
def test_hpdv2_train(tmp_path: Path, column: str) -> None:
    row = {"prompt": "a cat", column: ["1.png", "2.png"], "human_preference": [0, 1]}
    rankings = open_rankings(written(tmp_path, [row], "train.json"))
    assert rankings.format == "hpdv2_train" and rankings[0].scores == (0, 1)
    assert Path(rankings[0].outputs[0].path or "") == tmp_path / "1.png"


def test_imagereward_json_and_parquet_say_the_same(tmp_path: Path) -> None:
    rows = [{"id": "p1", "prompt": "a cat", "generations": ["a/1.webp", "a/2.webp"], "ranking": [2, 1]}]
    table = [
        {"prompt_id": "p1", "prompt": "a cat", "image_path": f"a/{k}.webp", "rank": rank, "image_amount_in_total": 2}
        for k, rank in ((1, 2), (2, 1))
    ]
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "metadata-test.parquet")
    (one,) = open_rankings(written(tmp_path, rows))
    (other,) = open_rankings(tmp_path / "metadata-test.parquet")
    assert one.scores == other.scores == (-2, -1) and one.outputs == other.outputs and one.meta == other.meta
    pq.write_table(pa.Table.from_pylist(table[:1]), tmp_path / "part.parquet")
    with pytest.raises(BadRow, match="1 images of a prompt that has 2"):
        open_rankings(tmp_path / "part.parquet")


def test_images_are_read_when_asked_for(tmp_path: Path) -> None:
    images = tmp_path / "elsewhere"
    images.mkdir()
    for k in (1, 2):
        Image.new("RGB", (4, 4), (k, 0, 0)).save(images / f"{k}.png")
    rankings = open_rankings(
        written(tmp_path, [hpd(image_path=["1.png", "2.png"], rank=[1, 2], raw_annotations=None), hpd()]), images=images
    )
    ranking, pictures = rankings.decoded(0)
    assert [p.getpixel((0, 0)) for p in pictures] == [(1, 0, 0), (2, 0, 0)] and "annotators" not in ranking.meta
    with pytest.raises(BadRow, match=r"Row 1 .*3\.png"):
        rankings.decoded(1)
    assert [error.row for error in rankings.bad] == [1] and "1 x an image is unreadable" in rankings.summary()


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (hpd(rank=[1, 2]), "rank does not have a value for each image"),
        (hpd(rank=[1, 2, None]), "rank holds something else than numbers"),
        (hpd(rank=[1, 2, float("nan")]), "finite"),
        (hpd(prompt=" "), "prompt is empty"),
        (hpd(image_path="1.png"), "not a list"),
        (hpd(image_path=["1.png", "../2.png", "3.png"]), "leads out of the folder"),
        (hpd(image_path=["1.png", "/2.png", "3.png"]), "leads out of the folder"),
        (hpd(image_path=["1.png", None, "3.png"]), "an image has no name"),
        (hpd(image_path=["1.png"], rank=[1], raw_annotations=[]), "at least 2 outputs"),
        (hpd(raw_annotations=[[1, 2]]), "raw_annotations does not have a value"),
    ],
)
def test_a_bad_row_is_named_or_left_out(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    path = written(tmp_path, [hpd(), row, hpd()])
    with pytest.raises(BadRow, match=f"Row 1 .*{words}"):
        open_rankings(path)
    rankings = open_rankings(path, on_bad_row="skip")
    assert len(rankings) == 2 and rankings.row(1) == 2 and [error.row for error in rankings.bad] == [1]
    assert "2 rankings of 3 rows; bad rows: 1 x" in rankings.summary()


@pytest.mark.parametrize("labels", [[0, 0], [1, 1], [0.5, 0.5], [2, 0]])
def test_a_choice_is_one_image(tmp_path: Path, labels: list[float]) -> None:
    row = {"prompt": "a cat", "file_path": ["1.png", "2.png"], "human_preference": labels}
    with pytest.raises(BadRow, match="not one 1 among zeros"):
        open_rankings(written(tmp_path, [row]))


def test_what_is_no_file_of_rankings_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no file"):
        open_rankings(tmp_path / "none.json")
    with pytest.raises(UserError, match="must hold a list of objects"):
        open_rankings(written(tmp_path, {"a": 1}))
    with pytest.raises(UserError, match="cannot be read as rankings"):
        open_rankings(written(tmp_path, [], "rows.csv"))
    with pytest.raises(UserError, match="holds no rows"):
        open_rankings(written(tmp_path, []))
    with pytest.raises(UserError, match=r"Found: prompt, images\. Known: hpdv2 needs"):
        open_rankings(written(tmp_path, [{"prompt": "p", "images": []}]))
    with pytest.raises(UserError, match="Known: imagereward needs"):
        open_rankings(written(tmp_path, [hpd()]), format="imagereward")
    with pytest.raises(UserError, match="did you mean 'hpdv2'"):
        open_rankings(written(tmp_path, [hpd()]), format="hpdv")
    (tmp_path / "broken.json").write_text("[{")
    assert not is_rankings(tmp_path / "broken.json") and not is_rankings(tmp_path / "none.json")
    assert is_rankings(written(tmp_path, [hpd()]))


def test_limit_counts_good_rows(tmp_path: Path) -> None:
    rankings = open_rankings(written(tmp_path, [hpd(rank=[]), hpd(), hpd(), hpd()]), limit=2, on_bad_row="skip")
    assert len(rankings) == 2 and rankings.row(1) == 2 and rankings.rows == 3


def test_every_format_is_told_by_its_own_fields() -> None:
    """imagereward_db has every field that hpdv2 needs and more, and is told by them."""
    fields = [set(reader.needs) for reader in RANKINGS.values()]
    assert len({frozenset(f) for f in fields}) == len(fields)


@pytest.mark.skipif(not REAL.is_file(), reason="the published test file is not there")
def test_the_published_rankings() -> None:
    """466 rankings of 2,720 images make 7,230 pairs, as the data set's card says (7.23K)."""
    rankings = open_rankings(REAL)
    assert len(rankings) == 466 and not rankings.bad and is_rankings(REAL)
    sizes = [len(ranking.outputs) for ranking in rankings]
    assert sum(sizes) == 2720 and sum(k * (k - 1) // 2 for k in sizes) == 7230
