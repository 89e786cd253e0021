"""Files of answers, hostile ones too; words and their singular; the page, the table and the JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palate.errors import UserError
from palate.report import render
from vlm.evaluate import Pope, Question, read_answers, result_report, write_result
from vlm.evaluate.answers import Answers
from vlm.evaluate.words import length, singular, words

IDS = ["1", "2", "3"]


def answers(tmp_path: Path, text: str | bytes, ids: list[str] = IDS, **how: Any) -> Answers:
    path = tmp_path / "answers.jsonl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_answers(path, ids, **how)


@pytest.mark.parametrize(
    "text",
    [
        '{"question_id": 1, "answer": "a"}\n{"question_id": 2, "answer": "b"}\n\n{"question_id": 3, "answer": ""}\n',
        '{"id": "1", "answer": "a"}\n{"id": "2", "answer": "b"}\n{"id": "3", "answer": ""}',  # palate
        '{"question_id": 1, "prompt": "?", "text": "a"}\n{"question_id": 3, "text": ""}\n{"question_id": 2, "text": "b"}',
        '[{"id": 1, "response": "a"}, {"id": 2, "response": "b"}, {"id": 3, "response": ""}]',  # AMBER
        '[\n {"image_id": 1, "caption": "a"},\n {"image_id": 2, "caption": "b"},\n {"image_id": 3, "caption": ""}\n]',
        '{"question": "?", "answer": "a"}\n{"question": "?", "answer": "b"}\n{"question": "?", "answer": ""}',  # POPE
        '{"1": "a", "2": "b", "3": ""}',
        '{\n "1": "a",\n "2": "b",\n "3": ""\n}',
        '\ufeff{"id": 1, "answer": "a"}\r\n{"id": 2, "answer": "b"}\r\n{"id": 3, "answer": ""}\r\n',
    ],
)
def test_the_forms_that_people_have(tmp_path: Path, text: str) -> None:
    read = answers(tmp_path, text)
    assert read.texts == {"1": "a", "2": "b", "3": ""} and not read.bad


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('{"id": 2, "answer": "b"', "line 2: not JSON"),
        ("[" * 5000, "line 2: not JSON"),
        ("17", "line 2: expected an object, got 17"),
        ("null", "line 2: expected an object"),
        ('{"answer": "b"}', "line 2: it answers no question"),
        ('{"id": 9, "answer": "b"}', "line 2: it answers no question"),
        ('{"id": null, "answer": "b"}', "line 2: it answers no question"),
        ('{"id": true, "answer": "b"}', "line 2: it answers no question"),
        ('{"id": [2], "answer": "b"}', "line 2: it answers no question"),
        ('{"id": 2}', "line 2: question 2 has no text"),
        ('{"question_id": 2, "image": "a.jpg", "text": "?", "label": "no"}', "line 2: this is a question of POPE"),
        ('{"id": 2, "answer": null}', "line 2: question 2 has no text"),
        ('{"id": 2, "answer": ["b"]}', "line 2: question 2 has no text"),
        ('{"id": 1, "answer": "again"}', "line 2: question 1 is answered a second time"),
        ('{"id": 2, "failure": "no such image"}', 'line 2: question 2 was not answered: "no such image"'),
    ],
)
def test_a_bad_row_is_named_and_the_others_are_read(tmp_path: Path, row: str, said: str) -> None:
    text = f'{{"id": 1, "answer": "a"}}\n{row}\n{{"id": 3, "answer": "c"}}'
    read = answers(tmp_path, text)
    assert read.texts == {"1": "a", "3": "c"}
    assert len(read.bad) == 1 and read.bad[0].startswith(said)
    with pytest.raises(UserError, match="1 rows are unusable and 1 of 3 questions have no answer"):
        read.for_questions(IDS, "answers.jsonl")
    assert read.for_questions(IDS, "answers.jsonl", partial=True) == {"1": "a", "3": "c"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "empty"),
        (b"[]", "empty"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b'[{"id": 1, "answer": "a"', "not JSON"),
        (b'{"answer": "a"}\n{"answer": "b"}', "2 rows for 3 questions"),
    ],
)
def test_a_file_that_cannot_be_read_at_all(tmp_path: Path, text: bytes, said: str) -> None:
    with pytest.raises(UserError, match=said):
        answers(tmp_path, text)
    with pytest.raises(UserError, match="cannot be read"):
        read_answers(tmp_path / "none.jsonl", IDS)


def test_no_answer_at_all_is_refused_even_in_part(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="answers none of the 3 questions"):
        answers(tmp_path, '{"id": 7, "answer": "a"}').for_questions(IDS, "x", partial=True)


def test_another_name_of_a_question(tmp_path: Path) -> None:
    read = answers(tmp_path, '{"image_id": 391895, "caption": "a"}', ["a.jpg"], aliases={"391895": "a.jpg"})
    assert read.texts == {"a.jpg": "a"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["id", "answer", "text", "image", "failure", "x"]), inner, max_size=4)
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(rows=st.lists(JSON.map(json.dumps) | st.text(max_size=20), max_size=5))
def test_no_file_is_too_strange(tmp_path_factory: pytest.TempPathFactory, rows: list[str]) -> None:
    """Whatever the rows hold: answers to known questions, bad rows, or a UserError."""
    path = tmp_path_factory.mktemp("rows") / "a.jsonl"
    path.write_bytes("\n".join(rows).encode("utf-8", "surrogatepass"))
    try:
        read = read_answers(path, IDS)
    except UserError:
        return
    assert set(read.texts) <= set(IDS) and all(isinstance(text, str) for text in read.texts.values())


@pytest.mark.parametrize(
    ("plural", "one"),
    [
        *[("dogs", "dog"), ("buses", "bus"), ("benches", "bench"), ("boxes", "box"), ("dishes", "dish")],
        *[("glasses", "glass"), ("vases", "vase"), ("houses", "house"), ("cherries", "cherry"), ("ties", "tie")],
        *[("knives", "knife"), ("people", "people"), ("children", "child"), ("Women", "Woman"), ("mice", "mouse")],
        *[("shoes", "shoe"), ("tomatoes", "tomato"), ("skis", "ski"), ("t-shirts", "t-shirt"), ("horses", "horse")],
        *[(word, word) for word in ("bus", "grass", "tennis", "person", "gas", "is", "us", "series", "dog", "a")],
    ],
)
def test_singular(plural: str, one: str) -> None:
    assert singular(plural) == one


@given(st.text())
def test_words_say_where_they_stand(text: str) -> None:
    assert all(text[word.start : word.end] == word.text for word in words(text))
    assert all(singular(word.text) for word in words(text))


def test_words_and_length() -> None:
    text = "The dog's well-known T-shirt, isn't it? 3 cats"
    assert [w.text for w in words(text)] == ["The", "dog", "s", "well-known", "T-shirt", "isn", "t", "it", "cats"]
    assert length(text) == 8


def small() -> Pope:
    questions = [Question(str(k), f"{k // 2}.jpg", f"Is there a <b>{k}</b>?") for k in range(4)]
    return Pope(questions, {"0": "yes", "1": "no", "2": "yes", "3": "no"})


def test_a_result_as_table_json_and_page(tmp_path: Path) -> None:
    result = small().score({"0": "Yes", "1": "<script>alert(1)</script>", "2": "No"})
    table = str(result).splitlines()
    assert table[0].startswith("pope: 3 answers, 2 images, 1 true positives")
    assert table[0].endswith("1 false negatives; 1 questions left out")
    assert [line.split()[0] for line in table[1:]] == [f.name for f in result.figures]
    data = json.loads(write_result(tmp_path / "deep" / "pope.json", result).read_text())
    assert data["figures"]["accuracy"]["value"] == pytest.approx(1 / 3) and data["left_out"] == 1
    assert [row["id"] for row in data["wrong"]] == ["1", "2"]
    assert result.metrics()["pope/accuracy"] == pytest.approx(1 / 3)
    page = render(result_report(result))
    assert "1 questions have no answer and are left out." in page
    assert "<script>alert" not in page and "read as yes, is no" in page
    with pytest.raises(KeyError):
        result["acuracy"]
