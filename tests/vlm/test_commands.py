"""`palate build` and `palate eval pope|chair|amber` as a user calls them, on the toy world and a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from apps.cli import main
from palate.readers.answers import open_answer_pairs, open_exchanges
from palate.toy.scenes import THINGS, contents, make_scene, name, question
from tests.tiny_vlm import picture, save_tiny_vlm
from vlm.evaluate.toy import toy_chair, toy_picture, toy_pope


def palate(*words: Any, code: int = 0) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    assert ended.value.code == code


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_vlm("llava", tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    """Rows of image, question and answer, three with pictures and one whose picture is broken."""
    rows = []
    for k in range(4):
        picture(k).save(tmp_path / f"{k}.png")
        rows.append(
            {"image": f"{k}.png", "question": "Describe it.", "answer": f"{k + 2} dogs and a red car by a tree."}
        )
    (tmp_path / "3.png").write_bytes(b"broken")
    path = tmp_path / "truth.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


# --- build -----------------------------------------------------------------------------------------------------------


def test_build_without_a_model(truth: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "pairs.parquet"
    palate("build", "--method", "swap", "--data", truth, "--out", out, "--seed", 4, "--kinds", "object", "attribute")
    said = capsys.readouterr().out
    assert "3 pairs" in said and "1 failed: " in said and "3.png" in said
    pairs = open_answer_pairs(out)
    assert len(pairs) == 3
    for k in range(3):
        pair = pairs[k]
        assert pair.chosen.startswith(f"{k + 2} dogs") and pair.rejected != pair.chosen
        assert {s["kind"] for s in pair.made["swaps"]} <= {"object", "attribute"} and pair.made["seed"] == 4


@pytest.mark.parametrize("method", ["povid-noise", "bpo-weaken", "bpo-inject"])
def test_build_with_a_local_model(method: str, truth: Path, tmp_path: Path, tiny: Path) -> None:
    """A random model: povid-noise always gives tokens; what the others say never ends, so nothing can be built."""
    out = tmp_path / "pairs.parquet"
    short = () if method == "povid-noise" else ("--max-new-tokens", 4)
    fails = 0 if method == "povid-noise" else 2
    palate("build", "--method", method, "--data", truth, "--out", out, "--model", tiny, *short, code=fails)
    assert out.exists() == (fails == 0)
    rows = [json.loads(line) for line in Path(f"{out}.rows.jsonl").read_text().splitlines()]
    assert len(rows) == 3


def test_build_from_pairs_takes_their_chosen_side(truth: Path, tmp_path: Path) -> None:
    palate("build", "--method", "swap", "--data", truth, "--out", tmp_path / "a.parquet", "--limit", 2)
    palate("build", "--method", "swap", "--data", tmp_path / "a.parquet", "--out", tmp_path / "b.parquet", "--seed", 9)
    first, second = open_answer_pairs(tmp_path / "a.parquet")[0], open_answer_pairs(tmp_path / "b.parquet")[0]
    assert second.chosen == first.chosen and second.rejected != first.rejected and second.made["seed"] == 9


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--method", "swop"], "did you mean 'swap'"),
        (["--method", "swap", "--step", 3], "swap has no use for --step"),
        (["--method", "bpo-weaken", "--rate", 0.3, "--kinds", "object"], "no use for --rate, --kinds"),
        (["--method", "swap", "--endpoint", "http://localhost/v1"], "needs no writer"),
        (["--method", "bpo-inject"], "Name a model with --model"),
        (["--method", "bpo-inject", "--endpoint", "http://localhost/v1"], "needs the name of a model"),
        (["--method", "swap", "--kinds", "objects"], "did you mean 'object'"),
        (["--method", "bpo-inject", "--model", "toy:vlm", "--mode", "quiz"], "Unknown mode"),
    ],
)
def test_build_says_what_is_wrong(
    words: list[Any], said: str, truth: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    palate("build", "--data", truth, "--out", tmp_path / "p.parquet", *words, code=2)
    assert said in capsys.readouterr().err


def test_rows_of_question_and_answer(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"question": "Why?", "answer": "So."}\n{"question": "", "answer": "x"}\n{"question": "a", "answer": 3}'
    )
    exchanges = open_exchanges(path, on_bad_row="skip")
    assert len(exchanges) == 1 and exchanges[0].answer == "So." and exchanges[0].images == ()


# --- eval ------------------------------------------------------------------------------------------------------------


def test_eval_on_the_toy_world_asks_scores_and_resumes(
    tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    how = ("eval", "chair", "--truth", "toy:held_out", "--answers", tmp_path / "a.jsonl", "--out", tmp_path / "out")
    palate(*how, "--model", tiny, "--limit", 6, "--max-new-tokens", 4)
    first = capsys.readouterr().out
    assert "toy chair: 6 descriptions" in first and "recall" in first and "length" in first
    before = (tmp_path / "a.jsonl").read_text()
    palate(*how, "--model", tiny, "--limit", 8, "--max-new-tokens", 4)
    assert (tmp_path / "a.jsonl").read_text().startswith(before)
    palate(*how)  # without a model: what was answered
    assert "toy chair: 8 descriptions" in capsys.readouterr().out
    data = json.loads((tmp_path / "out" / "toy-chair.json").read_text())
    assert data["counts"]["descriptions"] == 8
    assert "palate eval chair" in (tmp_path / "out" / "toy-chair.html").read_text()


def test_eval_of_given_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Answers that are right but for one of 400, and then one that is missing."""
    benchmark = toy_pope()
    rows = [{"id": q.id, "answer": benchmark.truth[q.id]} for q in benchmark.questions]
    rows[7]["answer"] = {"yes": "no", "no": "yes"}[rows[7]["answer"]]
    path = tmp_path / "answers.json"
    path.write_text(json.dumps(rows))
    palate("eval", "pope", "--questions", "toy:held_out", "--answers", path)
    assert "accuracy   99.8 %" in capsys.readouterr().out
    path.write_text(json.dumps(rows[1:]))
    palate("eval", "pope", "--questions", "toy:held_out", "--answers", path, code=2)
    assert "1 of 400 questions have no answer" in capsys.readouterr().err
    palate("eval", "pope", "--questions", "toy:held_out", "--answers", path, "--partial")
    assert "399 answers" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pope", "--questions", "none.json"], "cannot be read"),
        (["pope", "--questions", "toy:heldout"], "did you mean 'held_out'"),
        (["chair", "--truth", "none.json"], "cannot be read"),
        (["chair", "--truth", "toy:train", "--synonyms", "none.txt"], "words of its own"),
        (["chair", "--truth", "toy:train"], "no file of answers"),
        (["amber", "--data", "nowhere"], "lacks annotations.json"),
        (["pope", "--questions", "toy:train", "--model", "no/such-model"], "no/such-model"),
    ],
)
def test_eval_says_what_is_wrong(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    palate("eval", *words, "--answers", tmp_path / "none.jsonl", code=2)
    assert said in capsys.readouterr().err


def test_missing_images_are_counted_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    questions = [{"question_id": k, "image": f"{k}.jpg", "text": "?", "label": "yes"} for k in range(3)]
    (tmp_path / "pope.json").write_text("\n".join(map(json.dumps, questions)))
    how = ("eval", "pope", "--questions", tmp_path / "pope.json", "--answers", tmp_path / "a.jsonl", "--model", "x/y")
    palate(*how, code=2)
    assert "--images" in capsys.readouterr().err
    picture(0).save(tmp_path / "0.jpg")
    palate(*how, "--images", tmp_path, code=2)
    assert "2 of 3 images are missing" in capsys.readouterr().err
    palate(*how, "--images", tmp_path / "none", code=2)
    assert "no folder of images" in capsys.readouterr().err


def test_a_benchmark_measures_a_model_while_it_trains(tmp_path: Path, tiny: Path) -> None:
    """The figures are those of the same answers scored apart, and lie in the evaluation's folder."""
    from vlm.evaluate.run import evaluate, measure
    from vlm.generate import LocalAnswerer
    from vlm.loading import load_model

    loaded = load_model(str(tiny))
    chair = toy_chair(count=6)
    report = measure(chair, toy_picture, limit=4, max_new_tokens=5)(loaded, tmp_path / "step-3", 3)
    result = evaluate(chair, LocalAnswerer(loaded, max_new_tokens=5), toy_picture, limit=4)
    assert report.keys() == result.metrics().keys() and report["toy chair/length"] == result["length"].value > 0
    assert json.loads((tmp_path / "step-3" / "toy-chair.json").read_text())["left_out"] == 2


# --- the toy world ---------------------------------------------------------------------------------------------------


def test_the_toy_benchmark_agrees_with_the_toys_own_judge() -> None:
    """Two implementations: CHAIR over a vocabulary of things, and `palate.toy.vlm_truth.measure`."""
    from palate.randomness import uniform
    from palate.toy.scenes import sentence
    from palate.toy.vlm_truth import measure

    chair = toy_chair(count=60)
    scenes = [contents(make_scene("held_out", k)) for k in range(60)]
    answers = [
        sentence([t for t in THINGS if uniform(k, name(t), 0, "say") < (0.7 if t in shown else 0.1)])
        for k, shown in enumerate(scenes)
    ]
    result = chair.score(dict(zip(chair.truth, answers, strict=True)))
    truth = measure(answers, scenes)
    for figure, other in (("CHAIR_s", truth.answers), ("CHAIR_i", truth.mentions), ("recall", truth.recall)):
        assert (result[figure].value, result[figure].n) == (pytest.approx(other.value), other.n)
        assert 0 < other.value < 1


def test_toy_questions_and_pictures_are_functions_of_their_names() -> None:
    pope = toy_pope(count=5)
    shown = [contents(make_scene("held_out", k)) for k in range(5)]
    for asked in pope.questions:
        number = int(asked.id.split("-")[0])
        thing = next(thing for thing in THINGS if question(thing) == asked.text)
        assert (thing in shown[number]) == (pope.truth[asked.id] == "yes")
    assert [pope.truth[q.id] for q in pope.questions] == ["yes", "no"] * 5
    assert toy_picture("held_out-3-0.png").id == toy_picture("held_out-3-0.png").id != toy_picture("train-3-0.png").id
