"""The benchmark: intervals, ceilings, baselines, what is fitted where, resuming, and the command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from apps.bench_rewards import main
from palate.errors import UserError
from palate.readers import write_pairs
from palate.records import Media, Pair, Vote
from palate.statistics import share
from palate.votes import votes_to_pairs
from rewards import ImageLike, ScoreBatch
from rewards.benchmark.baselines import PromptLength, baselines
from rewards.benchmark.bootstrap import Bootstrap
from rewards.benchmark.cases import Case, Cases, Judgement, open_cases
from rewards.benchmark.page import lines
from rewards.benchmark.results import ceiling, compare_all, compute
from rewards.benchmark.scoring import Scored, file_name, score_cases
from rewards.calibration import Calibration


class Red:
    """Scores the red level of the first pixel; a blue picture has no score."""

    name, unit = "red", "level"
    seen: list[int] = []  # noqa: RUF012 - sizes of the batches of a test, emptied by it
    weights = "w1"

    def score(self, prompts: Sequence[str], images: Sequence[ImageLike]) -> ScoreBatch:
        self.seen.append(len(images))
        pictures = [image if isinstance(image, Image.Image) else Media.image(image.path).decode() for image in images]  # type: ignore[union-attr]
        levels = [picture.convert("RGB").getpixel((0, 0)) for picture in pictures]
        values = np.array([np.nan if b else r for r, _, b in levels], dtype=np.float64)  # type: ignore[misc]
        failures = dict.fromkeys(np.flatnonzero(np.isnan(values)).tolist(), "it is blue")
        return ScoreBatch(values, self.name, self.unit, self.weights, "none", failures=failures)


def picture(red: int, blue: int = 0) -> Media:
    return Media.image(Image.new("RGB", (8, 8), (red, 0, blue)))


@pytest.fixture
def votes(tmp_path: Path) -> Path:
    """Twelve pairs of eight prompts; the redder one was chosen, but in the last."""
    pairs = [Pair(f"prompt {k % 8}", picture(100 + k), picture(10 + k)) for k in range(11)]
    write_pairs([*pairs, Pair("prompt 7", picture(5), picture(50))], tmp_path / "votes.parquet")
    return tmp_path / "votes.parquet"


# --- intervals -------------------------------------------------------------------------------------------------------


def test_the_bootstrap_agrees_with_the_closed_form() -> None:
    rng = np.random.default_rng(0)
    level = rng.beta(4, 2, size=80)
    marks = (rng.random((80, 5)) < level[:, None]).astype(float).ravel()
    clusters = np.repeat(np.arange(80), 5).tolist()
    bootstrap = Bootstrap(clusters, draws=4000)
    found, known = bootstrap.share(marks, bootstrap.means(marks[:, None])[:, 0]), share(marks, clusters=clusters)
    assert found.value == known.value and found.clusters == 80
    assert [found.low, found.high] == pytest.approx([known.low, known.high], abs=0.01)
    alone = share(marks)
    assert found.high - found.low > 1.1 * (alone.high - alone.low)  # prompts are alike within, and counted as such


def test_scorers_are_resampled_together() -> None:
    """Two scorers that differ on one mark of fifty: the paired difference is far surer than the two accuracies."""
    rng = np.random.default_rng(0)
    one = (rng.random(50) < 0.7).astype(float)
    other = one.copy()
    other[0] = 1 - other[0]
    bootstrap = Bootstrap(range(50))
    drawn = bootstrap.means(np.stack([one, other], axis=1))
    found = bootstrap.difference(one - other, drawn[:, 0] - drawn[:, 1])
    assert abs(found.value) == pytest.approx(0.02) and found.high - found.low < 0.1
    assert bootstrap.share(one, drawn[:, 0]).high - bootstrap.share(one, drawn[:, 0]).low > 0.2


def test_a_perfect_scorer_does_not_get_an_interval_of_no_width() -> None:
    bootstrap = Bootstrap(range(20))
    found = bootstrap.share(np.ones(20), bootstrap.means(np.ones((20, 1)))[:, 0])
    assert found.value == 1 and found.low == share(np.ones(20)).low < 0.9


def test_draws_depend_on_the_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    marks = np.random.default_rng(0).random((30, 2))
    first = Bootstrap(range(30), seed=1).means(marks)
    monkeypatch.setattr("rewards.benchmark.bootstrap._AT_ONCE", 30 * 7)  # blocks of seven draws
    assert np.allclose(Bootstrap(range(30), seed=1).means(marks), first, atol=1e-12)
    assert not np.allclose(Bootstrap(range(30), seed=2).means(marks), first)
    with pytest.raises(UserError, match="at least 100 draws"):
        Bootstrap(range(30), draws=10)


# --- baselines -------------------------------------------------------------------------------------------------------


def test_baselines_see_what_they_say() -> None:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8))
    blurred, grey = noise.filter(ImageFilter.GaussianBlur(3)), noise.convert("L").convert("RGB")
    found = {s.name: s.score(["p"] * 3, [noise, blurred, grey]).values for s in baselines()}
    assert found["sharpness"][0] > 2 * found["sharpness"][1] and found["jpeg-size"][0] > 1.5 * found["jpeg-size"][1]
    assert found["saturation"][2] == 0 < found["saturation"][0]
    assert PromptLength().score(["a", "a cat"], [None, b"no image"]).values.tolist() == [1, 5]


def test_statistics_by_hand() -> None:
    """A red picture: saturation 1, sharpness 0. Black and white columns: each pixel's Laplacian is 2 but at the border."""
    red = Image.new("RGB", (8, 8), (255, 0, 0))
    stripes = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (8, 4))).convert("RGB")
    found = {s.name: s.score(["p"] * 2, [red, stripes]).values for s in baselines()}
    assert found["saturation"].tolist() == [1, 0] and found["sharpness"] == pytest.approx(
        [0, (6 * 2 + 2 * 1) / 8], abs=1e-6
    )


# --- tables ----------------------------------------------------------------------------------------------------------


def scored(judgements: list[Judgement], prompts: list[str] | None = None, unit: str = "level", **values: Any) -> Scored:
    names = prompts or [f"prompt {k}" for k in range(len(judgements))]
    about = {name: {"unit": unit, "weights": "w", "preprocess": "", "dtype": ""} for name in values}
    rows = {name: [np.array(row, dtype=float) for row in listed] for name, listed in values.items()}
    return Scored(list(range(len(judgements))), names, judgements, rows, about)


def pair(first: float, ties: float, second: float) -> Judgement:
    p = (first + ties / 2) / (first + ties + second)
    return Judgement((p, 1 - p), tally=(first, ties, second))


def test_comparisons_that_one_scorer_cannot_make_are_left_out_for_all() -> None:
    data = scored([Judgement((3, 2, 1))], good=[[3, 2, 1]], partial=[[1, np.nan, 2]])
    found, left_out = compare_all(data, ["good", "partial"])
    assert left_out == 2 and found.label.tolist() == [1] and found.gaps["good"].tolist() == [2]
    assert compare_all(data, ["good"])[0].label.tolist() == [1, 1, 1]


def test_the_table_by_hand() -> None:
    """Four prompts; `good` is right in three and equal in one, `bad` is right in one: 3.5 / 4 and 1 / 4."""
    data = scored(
        [pair(1, 0, 0)] * 3 + [pair(0, 0, 1)],
        good=[[2, 1], [3, 1], [1, 1], [0, 4]],
        bad=[[1, 2], [2, 1], [1, 2], [4, 3]],
        length=[[1, 1]] * 4,
    )
    found = compute(data, "decisive", baselines=["bad", "length"])
    assert [(row.name, row.accuracy.value) for row in found.rows] == [("good", 0.875), ("length", 0.5), ("bad", 0.25)]
    assert found.rows[0].gain and found.rows[0].gain.value == pytest.approx(0.375) and found.rows[1].gain is None
    assert found.comparisons == found.prompts == 4 and found.ceiling is None
    assert any(line.startswith("good") and "87.5 %" in line and "+37.5" in line for line in lines(found))


def test_thresholds_are_learnt_from_other_prompts() -> None:
    """Leads below .25 are ties everywhere: each half finds .2 or .3 from the other, and marks all 40 right."""
    rng = np.random.default_rng(0)
    lead = np.concatenate([rng.uniform(0.01, 0.2, 20), rng.uniform(0.35, 0.9, 20)])
    judgements = [pair(0, 1, 0)] * 20 + [pair(1, 0, 0)] * 20
    values = [[2 * np.arctanh(d), 0.0] for d in lead]  # p1 - p0 = tanh(gap / 2)
    found = compute(scored(judgements, unit="logit", model=values), "threshold", baselines=[])
    (row,) = found.rows
    assert row.accuracy.value == 1 and all(0.2 <= t <= 0.3 for t in row.thresholds) and len(row.thresholds) == 2


def test_a_scorer_that_shines_on_one_half_is_not_fitted_on_it() -> None:
    """Probabilities of a prompt come from the other half: turning one half's labels spoils the other's predictions."""
    rng = np.random.default_rng(1)
    gaps = rng.normal(size=200)
    values = [[g, 0.0] for g in gaps]
    right = [pair(1, 0, 0) if g > 0 else pair(0, 0, 1) for g in gaps]
    fold = compare_all(scored(right, model=values), ["model"])[0].fold
    mixed = [j if f else pair(*j.tally[::-1]) for j, f in zip(right, fold, strict=True)]  # type: ignore[index]
    (row,) = compute(scored(mixed, model=values), "decisive", baselines=[]).rows
    assert row.log_loss > 1  # each half is sure of what the other half denies, or says nothing
    (row,) = compute(scored(right, model=values), "decisive", baselines=[]).rows
    assert row.log_loss < 0.2


def test_validation_cases_are_what_is_fitted_on() -> None:
    test = scored([pair(3, 0, 1)] * 6, model=[[1, 0]] * 6)
    learnt = scored([pair(9, 0, 1)] * 6, model=[[1, 0]] * 6)
    (row,) = compute(test, "decisive", baselines=[], validation=learnt).rows
    assert row.calibration.probabilities(np.array(1.0))[0] == pytest.approx(0.9, abs=0.01)
    assert row.reliability.predicted == pytest.approx(
        [0.9] * 6, abs=0.01
    ) and row.reliability.observed == pytest.approx([0.75] * 6)


def test_a_scorer_without_any_score_is_named_and_does_not_empty_the_table() -> None:
    data = scored([pair(1, 0, 0), pair(0, 0, 1)], model=[[1, 0], [0, 1]], lost=[[np.nan] * 2] * 2)
    found = compute(data, "decisive", baselines=[])
    assert found.unscored == ["lost"] and [row.name for row in found.rows] == ["model"]
    with pytest.raises(UserError, match="No comparison has a score"):
        compute(scored([pair(1, 0, 0)], lost=[[np.nan] * 2]), "decisive", baselines=[])
    with pytest.raises(UserError, match="did you mean 'decisive'"):
        compute(data, "decisiv", baselines=[])


# --- the human ceiling -----------------------------------------------------------------------------------------------


def test_one_of_several_voters_by_hand() -> None:
    """Votes 3 : 0: each agrees with the other two. Votes 2 : 1: each of the two faces 1 : 1, a tie that the rule leaves
    out, and the third faces 2 : 0 and is wrong. A single vote faces nobody."""
    found = ceiling(scored([pair(3, 0, 0), pair(2, 0, 1), pair(1, 0, 0)], x=[[1, 0]] * 3), "decisive")
    assert found is not None and found.value == 3 / 4 and found.n == 4
    found = ceiling(scored([pair(3, 0, 0), pair(2, 0, 1)], x=[[1, 0]] * 2), "threshold")
    assert found is not None and found.value == (3 * 1 + 2 * 0.5 + 0) / 6
    assert ceiling(scored([pair(1, 0, 0)], x=[[1, 0]]), "decisive") is None


def test_one_of_several_annotators_by_hand() -> None:
    """Ranks abc, abc, bac. The first two face a mean of (1.5, 1.5, 3): a = b, both others right. The third faces abc."""
    people = ((-1.0, -2.0, -3.0), (-1.0, -2.0, -3.0), (-2.0, -1.0, -3.0))
    data = scored([Judgement((-1, -2, -3), people)], x=[[3, 2, 1]])
    found = ceiling(data, "inversions")
    assert found is not None and found.value == pytest.approx((1 + 1 + 2 / 3) / 3) and found.n == 3
    found = ceiling(data, "pooled")
    assert found is not None and found.value == pytest.approx((2 + 2 + 2) / (2 + 2 + 3))


def test_the_votes_of_annotators_calibrate() -> None:
    people = ((1.0, 0.0), (1.0, 1.0), (0.0, 1.0), (2.0, 1.0))
    assert Judgement((1, 0), people).votes(0, 1) == (2, 1, 1) and Judgement((1, 0)).votes(1, 0) == (0, 0, 1)


# --- scoring ---------------------------------------------------------------------------------------------------------


def test_a_killed_run_goes_on_where_it_stood(votes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = open_cases(str(votes))
    whole = score_cases(cases, [Red()], tmp_path / "whole", chunk=4)
    score = Red.score

    def break_off(self: Red, prompts: Sequence[str], images: Sequence[ImageLike]) -> ScoreBatch:
        if len(self.seen) == 3:
            raise KeyboardInterrupt
        return score(self, prompts, images)

    Red.seen.clear()
    with monkeypatch.context() as patch:
        patch.setattr(Red, "score", break_off)
        with pytest.raises(KeyboardInterrupt):
            score_cases(cases, [Red()], tmp_path / "cut", chunk=4)
    with (tmp_path / "cut" / "red.jsonl").open("a") as file:
        file.write('{"case": 8, "row": 8, "val')  # what the kill tore
    Red.seen.clear()
    found = score_cases(cases, [Red()], tmp_path / "cut", chunk=4)
    assert Red.seen == [2, 8]  # one case to see what makes the scores, then the last chunk
    assert json.dumps(found.values, default=np.ndarray.tolist) == json.dumps(whole.values, default=np.ndarray.tolist)
    Red.seen.clear()
    score_cases(cases, [Red(), PromptLength()], tmp_path / "cut", chunk=4)
    assert Red.seen == [2]  # another scorer beside it costs it nothing


def test_a_file_is_decoded_once_for_all_scorers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cases of two files: two decodings to learn what makes the scores, then four, however many scorers look."""
    files = []
    for number in range(4):
        Image.new("RGB", (8, 8), (40 * number, 9, 9)).save(tmp_path / f"{number}.png")
        files.append(Media.image(tmp_path / f"{number}.png"))
    decoded: list[Media] = []
    real = Media.decode
    monkeypatch.setattr(Media, "decode", lambda self: (decoded.append(self), real(self))[1])

    def take(k: int) -> Case:
        return Case(k, f"p{k}", tuple(files[2 * k : 2 * k + 2]), Judgement((1.0, 0.0)))

    found = score_cases(Cases("x", "decisive", ["p0", "p1"], take, "", lambda: ""), baselines(), tmp_path / "out")
    assert len(decoded) == 6 and all(np.isfinite(v).all() for rows in found.values.values() for v in rows)


def test_other_weights_are_scored_anew(votes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = open_cases(str(votes))
    score_cases(cases, [Red()], tmp_path / "s")
    monkeypatch.setattr(Red, "weights", "w2")
    Red.seen.clear()
    found = score_cases(cases, [Red()], tmp_path / "s")
    assert sum(Red.seen) == 2 + 24 and found.about["red"]["weights"] == "w2"
    score_cases(open_cases(str(votes), limit=3), [Red()], tmp_path / "s")
    assert len((tmp_path / "s" / "red.jsonl").read_text().splitlines()) == 4  # other data: a file of three cases


def test_what_failed_is_tried_again(tmp_path: Path) -> None:
    """An image that is put right is scored by the next run; what was scored is not scored again."""
    rows = [{"prompt": f"p{k}", "generations": [f"{k}a.png", f"{k}b.png"], "ranking": [1, 2]} for k in range(2)]
    (tmp_path / "test.json").write_text(json.dumps(rows))
    for name in ("0a", "0b", "1a"):
        (tmp_path / f"{name}.png").write_bytes(picture(9).content())
    cases = open_cases(str(tmp_path / "test.json"))
    found = score_cases(cases, baselines()[:1], tmp_path / "s")
    assert [f["image"] for f in found.failures["sharpness"]] == [1] and np.isnan(found.values["sharpness"][1][1])
    (tmp_path / "1b.png").write_bytes(picture(7).content())
    found = score_cases(cases, baselines()[:1], tmp_path / "s")
    assert not found.failures and np.isfinite(found.values["sharpness"][1]).all()


def test_files_of_scorers_are_told_apart() -> None:
    assert file_name("hpsv2.1") == "hpsv2.1" and len({file_name(n) for n in ("a b", "a_b", "a:b", "a/b")}) == 4


def test_two_scorers_of_one_name_are_refused(votes: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Two scorers are called 'red'"):
        score_cases(open_cases(str(votes)), [Red(), Red()], tmp_path / "s")


# --- data ------------------------------------------------------------------------------------------------------------


def test_votes_keep_their_tallies(tmp_path: Path) -> None:
    a, b = picture(9), picture(1)
    cast = [Vote("p", a, b, o, f"v{k}", "battle") for k, o in enumerate(("a", "a", "tie", "b"))]  # type: ignore[arg-type]
    pairs, _ = votes_to_pairs(cast, ties="soft")
    write_pairs(pairs, tmp_path / "votes.parquet")
    case = open_cases(str(tmp_path / "votes.parquet")).take(0)
    assert case.judgement.tally == (2, 1, 1) and case.judgement.values == (0.625, 0.375)


def test_data_are_told_by_their_kind(tmp_path: Path, votes: Path) -> None:
    rows = [{"prompt": "p", "generations": ["1.png", "2.png"], "ranking": [1, 2]}]
    (tmp_path / "test.json").write_text(json.dumps(rows))
    assert open_cases(str(votes)).rule == "decisive" and open_cases(str(tmp_path / "test.json")).rule == "decisive"
    assert open_cases(f"imagereward:{tmp_path / 'test.json'}").rule == "pooled"
    with pytest.raises(UserError, match="holds imagereward, not hpdv2"):
        open_cases(f"hpdv2:{tmp_path / 'test.json'}")
    with pytest.raises(UserError, match="names no path"):
        open_cases("hpdv2:")


# --- the command -----------------------------------------------------------------------------------------------------

MINE = "tests.rewards.test_benchmark:Red"


def test_the_command(votes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--scorer", MINE, "--data", str(votes), "--out", str(tmp_path / "out"), "--draws", "200"])
    said = capsys.readouterr().out
    assert "red" in said and "91.7 %" in said and "12 comparisons of 12 cases, 8 prompts" in said
    for name in ("sharpness", "jpeg-size", "saturation", "prompt-length"):
        assert name in said
    numbers = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    assert numbers["scorers"]["red"]["accuracy"]["value"] == pytest.approx(11 / 12)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Reliability of red" in page and "Scorers against people" in page
    calibration = Calibration.load(tmp_path / "out" / "calibration" / "red.json")
    assert calibration.unit == "level" and calibration.weights == "w1" and calibration.votes == 12


def test_rows_that_fail_are_counted_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = [Pair(f"p{k}", picture(90), picture(9, blue=255 * (k == 1))) for k in range(3)]
    write_pairs([*pairs, Pair("p3", picture(7), Media(data=b"broken"))], tmp_path / "votes.parquet")
    with pytest.raises(SystemExit) as stop:
        main(["--scorer", MINE, "--data", str(tmp_path / "votes.parquet"), "--out", str(tmp_path / "out")])
    assert stop.value.code == 1
    said = capsys.readouterr()
    assert "1 failed (red), first row 1: it is blue" in said.err and "1 failed (reading), first row 3" in said.err
    assert "left out for want of a score: 1" in said.out and "2 comparisons of 2 cases" in said.out
    failures = json.loads((tmp_path / "out" / "benchmark.json").read_text())["failures"]
    assert failures["red"] == [{"row": 1, "image": 1, "reason": "it is blue"}] and failures[""][0]["row"] == 3


def test_a_misspelt_rule_costs_no_scoring(votes: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'pooled'"):
        main(["--data", str(votes), "--out", str(tmp_path / "out"), "--rule", "pool"])
    assert not (tmp_path / "out").exists()


REAL = Path(__file__).parents[3] / "shared" / "data" / "imagereward" / "test.json"


@pytest.mark.skipif(not REAL.is_file(), reason="the published test file is not there")
def test_the_published_rankings_without_their_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--data", f"imagereward:{REAL}", "--out", str(tmp_path / "out"), "--draws", "100"])
    said = capsys.readouterr()
    assert "7,230 comparisons of 466 cases" in said.out and "sharpness could score nothing" in said.out
    assert "2,720 failed (sharpness)" in said.err
