"""The board: live equals recomputed, order does not matter, any table has a board, and its page says what is so."""

from __future__ import annotations

import csv
import json
import re
import zipfile
from datetime import UTC, datetime
from hashlib import blake2b
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.arena.ratings.board import Board, board, growth, plain
from apps.arena.ratings.log import from_rows, read_log
from apps.arena.ratings.page import css, fragment, page
from apps.arena.ratings.table import FLAGS, VoteLog, VoteTable
from apps.cli import main
from palate.errors import UserError
from palate.records import OUTCOMES
from tests.apps.arena.simulated import table_of, votes_of


def rows_of(votes: VoteTable) -> list[dict[str, Any]]:
    """Return the votes as an exported log has them, with dates in ISO 8601."""
    names = {bit: name for name, bit in FLAGS.items()}
    return [
        {
            "battle": f"battle {i}",
            "model_a": votes.models[votes.model_a[i]],
            "model_b": votes.models[votes.model_b[i]],
            "outcome": OUTCOMES[votes.outcome[i]],
            "voter": votes.voters[votes.voter[i]],
            "prompt": votes.prompts[votes.prompt[i]],
            "category": votes.categories[votes.category[i]],
            "created": datetime.fromtimestamp(votes.created[i], UTC).isoformat(),
            "flags": [names[bit] for bit in names if votes.flags[i] & bit],
            **{f"{side}/{name}": float(column[i, k])
               for side, column in (("a", votes.measures_a), ("b", votes.measures_b))
               for k, name in enumerate(votes.covariates)},
        }
        for i in range(len(votes))
    ]  # fmt: skip


def write_log(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def votes() -> VoteTable:
    rng = np.random.default_rng(0)
    made = votes_of(
        np.linspace(0.8, -0.8, 5), 60, 15, rng, taste=0.4, both_bad=0.05, measures=1, beta=0.3, categories=3
    )
    made.flags[rng.random(len(made)) < 0.05] = FLAGS["gold"] | FLAGS["repeat"]
    return made


@pytest.fixture(scope="module")
def made(votes: VoteTable) -> Board:
    return board(votes, bootstraps=200)


def test_recomputed_from_the_log_equals_live_in_any_order(votes: VoteTable, made: Board, tmp_path: Path) -> None:
    """Live: appended vote by vote, flags set later. Recomputed: the exported file with its lines shuffled and its voters
    under other names, as an export of the arena has them."""
    rows = rows_of(votes)
    live = VoteLog(votes.covariates)
    for row in rows:
        wanted = {key: row[key] for key in ("model_a", "model_b", "outcome", "voter", "prompt", "category", "created")}
        measured = {f"measures_{side}": {"measure 0": row[f"{side}/measure 0"]} for side in "ab"}
        live.append(**wanted, **measured)
    for i, row in enumerate(rows):
        live.set_flags(i, row["flags"])
    order = np.random.default_rng(1).permutation(len(rows))
    shuffled = write_log(tmp_path / "votes.jsonl", [renamed(rows[i]) for i in order])
    assert board(live.table(), bootstraps=200).as_dict() == made.as_dict()
    assert board(read_log(shuffled), bootstraps=200).as_dict() == made.as_dict()
    controlled = [board(t, control=["all"], bootstraps=50).as_dict() for t in (votes, read_log(shuffled))]
    assert controlled[0] == controlled[1]
    timeless = [{**row, "created": ""} for row in rows]
    one, other = ([timeless[i] for i in by] for by in (range(len(rows)), order))
    assert board(from_rows(one), bootstraps=0).as_dict() == board(from_rows(other), bootstraps=0).as_dict()


def renamed(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "voter": blake2b(row["voter"].encode(), digest_size=8).hexdigest()}


def close(one: Any, other: Any) -> bool:
    """Whether two boards for JSON agree but for the last digits."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(close, one, other))
    return one == pytest.approx(other, rel=1e-6, abs=1e-6) if isinstance(one, float) else one == other


def test_every_form_of_the_log_says_the_same(votes: VoteTable, tmp_path: Path) -> None:
    rows = rows_of(votes)
    lines = write_log(tmp_path / "votes.jsonl", rows)
    flat = [{**row, "flags": " ".join(row["flags"])} for row in rows]
    with (tmp_path / "votes.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(flat[0]))
        writer.writeheader()
        writer.writerows(flat)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "votes.parquet")
    with zipfile.ZipFile(tmp_path / "export.zip", "w") as archive:
        archive.write(lines, "export/votes.jsonl")
    expected = board(votes, bootstraps=20, control=["measure 0"]).as_dict()
    for name in ("votes.jsonl", "votes.csv", "votes.parquet", "export.zip", "."):
        assert board(read_log(tmp_path / name), bootstraps=20, control=["measure 0"]).as_dict() == expected, name


def test_the_board_says_what_counts_and_what_does_not(votes: VoteTable, made: Board) -> None:
    flagged = int(np.count_nonzero(votes.flags))
    assert made.left_out == {"gold": flagged, "repeat": flagged}
    assert made.counted == made.overall.votes == len(votes) - flagged
    assert sum(section.votes for section in made.categories.values()) == made.counted
    assert sum(row.votes for row in made.overall.rows) == 2 * made.counted
    assert [row.model for row in made.overall.rows] == list(made.overall.heads.models)
    assert made.growth[-1][1] == made.counted
    assert made.latest == votes.created[votes.flags == 0].max()
    for row in made.overall.rows:
        assert row.wins + row.losses + row.ties + round(row.votes * row.both_bad.value) == row.votes
        assert row.rank_best <= row.rank <= row.rank_worst
    assert sum(row.first or 0 for row in made.overall.rows) == pytest.approx(1)
    heads = made.overall.heads
    assert heads.expected + heads.expected.T == pytest.approx(np.ones((5, 5)))
    assert all(
        (heads.verdict[i][j] == "ahead") == (heads.verdict[j][i] == "behind") for i in range(5) for j in range(5)
    )
    assert made.overall.heads.wins.sum() + made.overall.heads.ties.sum() / 2 == made.overall.decided


def test_swapping_every_battle_changes_the_side_alone(votes: VoteTable, made: Board) -> None:
    swapped = board(votes.swap(), bootstraps=200)
    assert close(plain(swapped.overall), plain(made.overall))
    assert swapped.side_bias.value == pytest.approx(1 - made.side_bias.value)


names = st.sampled_from(["x", "y", "z", "w"])
battles = st.tuples(names, names, st.sampled_from(OUTCOMES), st.sampled_from(["1", "2", "3"])).filter(
    lambda row: row[0] != row[1]
)


@given(st.lists(battles, max_size=12), st.sampled_from(["half", "davidson"]), st.sampled_from([(), ("side",)]))
@settings(max_examples=60, deadline=None)
def test_any_votes_have_a_board_and_a_page(
    rows: list[tuple[str, str, str, str]], ties: str, control: tuple[str, ...]
) -> None:
    votes = table_of(*rows) if rows else VoteTable.of([], [], [], [])
    made = board(votes, ties=ties, control=control, bootstraps=20)  # type: ignore[arg-type]
    data = made.as_dict()
    json.dumps(data, allow_nan=False)
    rated = {row.model for row in made.overall.rows}
    assert rated | set(made.overall.unrated) == {name for row in rows for name in row[:2]}
    assert not rated & set(made.overall.unrated)
    assert "<svg" in page(data) or not rated
    for row in made.overall.rows:
        assert np.isfinite(row.rating)
        assert row.low <= row.rating <= row.high
        assert row.high - row.low > 1e-6  # nobody is certain after twelve votes


def test_an_undefeated_newcomer_leans_on_the_prior_and_a_stranger_is_not_rated() -> None:
    rows = [("x", "y", "a"), ("x", "y", "b"), ("new", "x", "a"), ("alone", "apart", "a"), ("bad", "x", "both_bad")]
    made = board(table_of(*rows), bootstraps=50).overall
    assert {row.model: row.note for row in made.rows} == {"new": "not beaten yet", "x": "", "y": ""}
    assert made.rows[0].model == "new"
    assert any("weak prior" in notice for notice in made.notices)
    assert made.unrated == {
        "alone": "not compared with the models above",
        "apart": "not compared with the models above",
        "bad": "no vote that found an output good",
    }


def test_proof_for_one_pair_is_less_than_proof_for_all() -> None:
    """Three models, three pairs: E of 50 to 20 first votes is 39.3, of 53 to 17 is 256.7; 1/alpha is 20 and 3/alpha 60."""
    rows = [("x", "y", "a")] * 50 + [("x", "y", "b")] * 20 + [("y", "z", "a")] * 53 + [("y", "z", "b")] * 17
    heads = board(table_of(*rows), bootstraps=0).overall.heads
    assert heads.models == ("x", "y", "z")
    assert heads.verdict == [["open", "ahead", "open"], ["behind", "open", "ahead"], ["open", "behind", "open"]]
    assert heads.everywhere.tolist() == [[False] * 3, [False, False, True], [False, True, False]]
    assert heads.first[0, 1] == 50
    assert 10 ** heads.evidence[0, 1] == pytest.approx(39.34, abs=0.01)
    strict = board(table_of(*rows), bootstraps=0, alpha=0.01).overall.heads
    assert strict.verdict[0][1] == "open"


def test_a_controlled_board_lists_what_it_holds_equal() -> None:
    votes = votes_of(np.linspace(0.5, -0.5, 4), 100, 40, np.random.default_rng(3), side=0.3, measures=1, beta=0.4)
    made = board(votes, control=["all"], bootstraps=100).overall
    side, measure = made.effects
    assert (side.name, side.scale) == ("side", 1.0)
    assert side.low < 0.3 < side.high
    assert measure.low < 0.4 * measure.scale < measure.high
    assert measure.scale == pytest.approx(2**0.5, rel=0.05)
    assert made.flips == []
    for row in made.rows:
        assert row.resampled_low is not None and row.resampled_high is not None
        assert row.resampled_high - row.resampled_low == pytest.approx(row.high - row.low, rel=0.35)
    alone = board(votes, control=["side"], bootstraps=0).overall
    assert [effect.name for effect in alone.effects] == ["side"]


def test_growth_by_hand() -> None:
    """Votes at 0, 1, 2 and 10 in four bins of 2.5: three in the first, one in the last."""
    assert growth(np.array([10.0, 0, 1, 2])) == [(0.0, 0), (2.5, 3), (5.0, 3), (7.5, 3), (10.0, 4)]
    assert growth(np.array([])) == []
    assert growth(np.array([5.0, 5.0])) == [(5.0, 2)]


@pytest.mark.parametrize(
    ("seconds", "label"),
    [
        (1800, "minutes since 1970-01-01 00:00"),
        (18_000, "hours since 1970-01-01 00:00"),
        (604_800, "days since 1970-01-01"),
    ],
)
def test_growth_is_told_in_a_unit_that_fits(made: Board, seconds: int, label: str) -> None:
    assert f"{label}<" in fragment({**made.as_dict(), "growth": [(0.0, 0), (float(seconds), 5)]})


class Elements(HTMLParser):
    """Collects tags, their attributes and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "line", "circle", "polyline"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("line", "circle", "polyline"):
            assert self.open.pop() == tag


def test_the_page_is_whole_has_no_script_and_escapes_names(votes: VoteTable) -> None:
    rows = rows_of(votes)
    for row in rows:
        for side in ("model_a", "model_b"):
            row[side] = row[side].replace("model 00", "<script>alert('x')</script>")
        row["category"] = "<img src=x onerror=alert(1)>" + row["category"]
    made = board(
        VoteTable.of(*([row[key] for row in rows] for key in ("model_a", "model_b", "outcome", "voter")),
                     category=[row["category"] for row in rows]),
        bootstraps=20, title="</title><script>",
    )  # fmt: skip
    text = page(made.as_dict())
    found = Elements(text)
    assert found.open == []
    assert not {"script", "img", "link", "iframe"} & set(found.tags)
    assert not [name for name, _ in found.attributes if name.startswith("on") or name in ("style", "src", "href")]
    assert found.tags.count("h1") + found.tags.count("main") >= 1
    assert "&lt;script&gt;alert" in text
    used = {name for value in (v for k, v in found.attributes if k == "class" and v) for name in value.split()}
    known = set(re.findall(r"\.([a-z][\w-]*)", css())) | {"pair", "line-0"}
    assert used <= known
    for name in set(re.findall(r"var\((--[\w-]+)\)", css())):
        assert css().count(f"{name}: ") == (1 if name == "--serif" else 2), name  # light and dark


def test_the_page_shows_what_the_board_says(made: Board) -> None:
    text = fragment(made.as_dict())
    first = made.overall.rows[0]
    assert f"{first.rating:.0f}" in text
    assert first.model in text
    assert f"{100 * first.both_bad.value:.1f}\u00a0%" in text
    assert text.count('class="dot"') == 5 * 4  # all votes and three categories
    assert "Left out" in text
    open_top = [row for row in made.overall.rows if row.rank_best == 1]
    assert ("is first." in text) == (len(open_top) == 1)


def test_the_command_writes_and_prints_the_same_board(
    votes: VoteTable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = write_log(tmp_path / "votes.jsonl", rows_of(votes))
    out = tmp_path / "new" / "board"
    argv = ["board", "--log", str(log), "--bootstraps", "50", "--title", "Mine"]
    with pytest.raises(SystemExit) as ended:
        main([*argv, "--out", f"{out}.json", "--out", f"{out}.html"])
    assert ended.value.code == 0
    expected = board(votes, bootstraps=50, title="Mine")
    assert json.loads(Path(f"{out}.json").read_text()) == json.loads(json.dumps(expected.as_dict()))
    assert Path(f"{out}.html").read_text() == page(expected.as_dict())
    said = capsys.readouterr().out
    assert f"{expected.counted} of {expected.total} votes count" in said
    assert all(f"{row.rating:.1f}" in said for row in expected.overall.rows)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ('{"model_a": "x", "model_b": "y", "outcome": "a"}', "vote 1: voter is missing"),
        ('{"model_a": "x", "model_b": "y", "outcome": "skip", "voter": "v"}', "Unknown vote outcome 'skip'"),
        ('{"model_a": "x", "model_b": "x", "outcome": "a", "voter": "v"}', "vote 1: A vote compares two models"),
        ('{"model_a": "x", "model_b": "y", "outcome": "a", "voter": "v", "flags": "golden"}', "did you mean 'gold'"),
        ('{"model_a": "x", "model_b": "y", "outcome": "a", "voter": "v", "created": "noon"}', "ISO 8601"),
        ('{"model_a": "x", "model_b": "y", "outcome": "a", "voter": "v", "a/size": "big"}', "a/size must be a number"),
        ('{"model_a": "x"', "line 1 is not JSON"),
        ("[1]", "line 1 is not an object"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, rows: str, message: str) -> None:
    (tmp_path / "votes.jsonl").write_text(rows)
    with pytest.raises(UserError, match=re.escape(message)):
        read_log(tmp_path / "votes.jsonl")


def test_bad_logs_and_settings_are_named(tmp_path: Path, votes: VoteTable) -> None:
    for name, content in (
        ("votes.parquet", b"no"),
        ("votes.csv", b"model_a\n\xff\n"),
        ("x.zip", b"no"),
        ("x.txt", b""),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=re.escape(name)):
            read_log(tmp_path / name)
    with pytest.raises(UserError, match="no log of votes at"):
        read_log(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no log"):
        read_log(tmp_path / "empty")
    for wrong in ({"level": 1.0}, {"alpha": 0}, {"bootstraps": -1}, {"ties": "drop"}, {"control": ["lenght"]}):
        with pytest.raises(UserError):
            board(votes, **wrong)  # type: ignore[arg-type]


def test_measures_may_differ_from_vote_to_vote() -> None:
    """An arena of images and texts: a measure is unknown where a row lacks it."""
    vote = {"model_a": "x", "model_b": "y", "outcome": "a", "voter": "v"}
    rows = [{**vote, "a/size": 2, "b/size": 1}, vote, {**vote, "a/length": 7.5, "b/length": "", "b/size": 3}]
    votes = from_rows({**row, "created": i} for i, row in enumerate(rows)).canonical()
    unknown = np.nan
    assert votes.covariates == ("length", "size")
    expected_a = np.array([[unknown, 2], [unknown, unknown], [7.5, unknown]])
    expected_b = np.array([[unknown, 1], [unknown, unknown], [unknown, 3]])
    assert votes.measures_a == pytest.approx(expected_a, nan_ok=True)
    assert votes.measures_b == pytest.approx(expected_b, nan_ok=True)


def test_a_gold_battle_with_one_model_is_no_comparison(tmp_path: Path) -> None:
    vote = {"model_a": "x", "model_b": "y", "outcome": "a", "voter": "v"}
    path = write_log(tmp_path / "votes.jsonl", [vote, {**vote, "model_b": "x", "flags": ["gold"]}])
    assert len(read_log(path)) == 1
