"""Readers of conversations give exactly what is in the data, count what they leave out, and blame rows by number."""

from __future__ import annotations

import io
import itertools
import json
import tempfile
from pathlib import Path

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from palate.conversations import IMAGE, AnswerPair, Exchange, Message, answer_id
from palate.errors import UserError
from palate.readers import BadRow, write_answer_pairs
from palate.readers.answers import ANSWER_READERS, open_answer_pairs, open_exchanges, stream_answer_pairs
from palate.records import Media

in_seconds = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("hf")))
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def png(*colour: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 6), colour).save(buffer, "PNG")
    return buffer.getvalue()


RED, BLUE = png(255, 0, 0), png(0, 0, 255)


def folder_of(path: Path, rows: list, name: str = "data.json") -> Path:
    """Write rows beside the images coco/red.png and coco/blue.png, and return the file."""
    (path / "coco").mkdir(exist_ok=True, parents=True)
    (path / "coco" / "red.png").write_bytes(RED)
    (path / "coco" / "blue.png").write_bytes(BLUE)
    lines = "\n".join(json.dumps(row) for row in rows)
    (path / name).write_text(lines if name.endswith("l") else json.dumps(rows, indent=1))
    return path / name


def turns(*said: str, key: str = "from", value: str = "value") -> list[dict[str, str]]:
    roles = itertools.cycle(["human", "gpt"])
    return [{key: next(roles), value: text} for text in said]


def povid(**changes) -> dict:
    row = {
        "id": "7",
        "image": "coco/red.png",
        "conversations": turns("<image>\nWhat is it?", "A red square."),
        "rejected_conversations": turns("<image>\nWhat is it?", "A red square and a dog."),
    }
    return {name: value for name, value in {**row, **changes}.items() if value is not ...}


# -- the canonical format -----------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda text: text.strip() and "<image>" not in text
)
images = st.sampled_from([Media.image(RED), Media.image(BLUE)])


@st.composite
def answer_pairs(draw) -> AnswerPair:
    system = (Message("system", (draw(texts),)),) if draw(st.booleans()) else ()
    turns_before = draw(st.lists(texts, max_size=2))
    before = [m for t in turns_before for m in (Message.user(t), Message("assistant", (t,)))]
    parts = draw(st.lists(st.just(IMAGE) | texts, min_size=1, max_size=4))
    count = sum(part is IMAGE for part in parts)
    shown = draw(st.tuples(*[images] * count))
    return AnswerPair(
        prompt=(*system, *before, Message("user", tuple(parts))),
        images=shown,
        chosen=draw(texts),
        rejected=draw(texts),
        rejected_images=draw(st.none() | st.tuples(*[images] * count)),
        p_chosen=draw(st.sampled_from([0.0, 0.3, 0.5, 1.0])),
        score_gap=draw(st.none() | st.floats(-9, 9)),
        source=draw(st.just("") | texts),
        meta=draw(st.dictionaries(texts, st.integers() | texts, max_size=2)),
    )


@in_seconds
@given(st.lists(answer_pairs(), min_size=1, max_size=5))
def test_what_is_written_is_read(pairs):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pairs.parquet"
        assert write_answer_pairs(iter(pairs), file) == len(pairs)
        opened = open_answer_pairs(file)
        assert list(opened.iter_good()) == pairs == list(stream_answer_pairs(file))
        assert [one.id for one in opened.iter_good()] == [one.id for one in pairs]


def test_what_is_written_is_what_trl_trains_on(tmp_path):
    from trl.data_utils import is_conversational, prepare_multimodal_messages

    pair = AnswerPair.ask("What is it?", [Media.image(RED)], "red", "blue")
    write_answer_pairs([pair, AnswerPair.ask("Hi", [], "a", "b")], tmp_path / "p")
    rows = datasets.load_dataset(str(tmp_path / "p"), split="train")
    assert is_conversational({"prompt": rows[0]["prompt"]})
    (message,) = prepare_multimodal_messages(rows[0]["prompt"], rows[0]["images"])
    assert [part["type"] for part in message["content"]] == ["image", "text"]
    assert message["content"][0]["image"].getpixel((0, 0)) == (255, 0, 0)
    assert rows[0]["chosen"] == [{"role": "assistant", "content": [{"text": "red", "type": "text"}]}]


def test_the_spellings_of_trls_columns_agree(tmp_path):
    red = {"bytes": RED, "path": None}
    ask = {"role": "user", "content": "What is it?"}
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "What is it?"}]
    answers = {"chosen": [{"role": "assistant", "content": "red"}], "rejected": [{"role": "assistant", "content": "b"}]}
    spellings = [
        {"prompt": [ask], "images": [red], **answers},
        {"prompt": [ask], "image": red, **answers},
        {"prompt": [{"role": "user", "content": parts}], "images": [red], **answers},
        {"prompt": "What is it?", "images": [red], "chosen": "red", "rejected": "b"},
        {"prompt": "<image>\nWhat is it?", "images": [red], "chosen": "red", "rejected": "b"},
    ]
    for number, row in enumerate(spellings):
        file = tmp_path / f"{number}.parquet"
        datasets.Dataset.from_list([row]).to_parquet(file)
        (pair,) = open_answer_pairs(file)
        assert pair == AnswerPair.ask("What is it?", [Media.image(RED)], "red", "b")
    features = datasets.Features({"prompt": datasets.Value("string"), "image": datasets.Image(), "chosen":
                                  datasets.Value("string"), "rejected": datasets.Value("string")})  # fmt: skip
    datasets.Dataset.from_list([spellings[3] | {"image": red}]).select_columns(list(features)).cast(
        features
    ).save_to_disk(tmp_path / "saved")
    assert open_answer_pairs(tmp_path / "saved")[0].images[0].data == RED


# -- outside formats ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_povid(tmp_path, name):
    text_only = povid(
        image=..., conversations=turns("Hi", "Hello", "Who?", "Me"), rejected_conversations=turns("", "x")
    )
    file = folder_of(tmp_path, [povid(), text_only], name)
    pairs = open_answer_pairs(file)
    assert pairs.format == "povid" and len(pairs) == 2 and pairs[0].meta == {"id": "7"}
    assert pairs[0].prompt == (Message("user", (IMAGE, "What is it?")),) and pairs[0].images[0].decode().size == (6, 6)
    assert (pairs[0].chosen, pairs[0].rejected) == ("A red square.", "A red square and a dog.")
    assert pairs[1].images == () and [m.role for m in pairs[1].prompt] == ["user", "assistant", "user"]
    assert list(stream_answer_pairs(file)) == [pairs[0], pairs[1]]


def completions(*scores: float, **changes) -> list[dict]:
    return [{"score": s, "response": f"answer {n}", "type": "gt" if s else "llm-hal"} for n, s in enumerate(scores)]


def test_bpo_pairs_every_two_completions_that_differ_in_score(tmp_path):
    """Scores 1, 0, 0, 2: (0,1) (0,2) (3,0) (3,1) (3,2), but not (1,2), which tie."""
    long = {"score": 5.0, "response": "word " * 351, "type": "gt"}
    rows = [
        {"prompt": "What?", "image": "coco/red.png", "completions": [*completions(1, 0, 0, 2), long]},
        {"prompt": "What?", "image": "coco/red.png", "completions": completions(1, 1)},
        {"prompt": "Why?", "image": "coco/blue.png", "completions": completions(0, 3)},
    ]
    file = folder_of(tmp_path, rows)
    pairs = open_answer_pairs(file)
    said = [(p.chosen[-1], p.rejected[-1], p.score_gap) for p in pairs.iter_good()]
    assert said == [("0", "1", 1), ("0", "2", 1), ("3", "0", 1), ("3", "1", 2), ("3", "2", 2), ("1", "0", 3)]
    assert pairs.summary().endswith("6 pairs of 3 rows; left out: 1 without two scores.")
    assert [pairs.row(n) for n in range(6)] == [0, 0, 0, 0, 0, 2] and pairs.column_missing("score_gap") == 0
    assert pairs[0].made == {"method": "llm-hal"} and pairs[0].meta["made"][answer_id("answer 0")] == {"method": "gt"}
    assert len(open_answer_pairs(file, limit=3)) == 3 and len(set(pairs.contents())) == 6
    assert len(set(pairs.groups()[:5])) == 1 and len(set(pairs.groups())) == 2
    stream = stream_answer_pairs(file)
    assert list(stream) == list(pairs.iter_good()) == [*stream_answer_pairs(file, limit=6)]
    for stop in range(1, 6):  # in the middle of a row, too
        first = list(itertools.islice(stream, stop))
        resumed = stream_answer_pairs(file)
        resumed.load_state_dict(json.loads(json.dumps(stream.state_dict())))
        assert first + list(resumed) == list(pairs.iter_good())


def test_rlaif_v_and_rlhf_v(tmp_path):
    where = {"ds_name": "x", "origin_dataset": "LLaVA", "origin_split": "{}", "idx": 3}
    said = {"question": "What?", "chosen": "red", "rejected": "blue"}
    rows = {"rlaif_v": {**said, **where}, "rlhf_v": {"text": json.dumps(said), **where}}
    for name, row in rows.items():
        data = datasets.Dataset.from_list([{**row, "image": {"bytes": RED, "path": "a.png"}}])
        data.cast_column("image", datasets.Image()).save_to_disk(tmp_path / name)
        for pair in (open_answer_pairs(tmp_path / name)[0], *stream_answer_pairs(tmp_path / name)):
            assert pair == AnswerPair.ask("What?", [Media.image(RED)], "red", "blue", source=name, meta=pair.meta)
            assert pair.meta["idx"] == 3 and pair.source == name


def test_llava_gives_an_exchange_for_every_answer(tmp_path):
    row = {"id": "1", "image": "coco/red.png", "conversations": turns("<image>\nWhat?", "red", "Sure?", "Yes")}
    rows = [row, {"id": "2", "conversations": turns("Hi", "Hello")}, {"id": "3", "conversations": []}]
    found = open_exchanges(folder_of(tmp_path, rows))
    assert [one.answer for one in found.iter_good()] == ["red", "Yes", "Hello"]
    assert [len(one.prompt) for one in found.iter_good()] == [1, 3, 1] and found[1].images == found[0].images
    assert found.summary().endswith("3 exchanges of 3 rows; left out: 1 without an answer.")
    chosen = open_exchanges(folder_of(tmp_path, [povid()], "povid.json"))
    assert chosen.format == "povid" and isinstance(chosen[0], Exchange) and chosen[0].answer == "A red square."


# -- images -------------------------------------------------------------------------------------------------------


def test_missing_images_are_counted_first(tmp_path):
    rows = [povid(), povid(image="gone.png"), povid(image="also/gone.png"), povid(image="gone.png")]
    file = folder_of(tmp_path, rows)
    with pytest.raises(UserError, match=r"3 of 4 rows .* cannot be found. The first is row 1 .*image_root"):
        open_answer_pairs(file)
    pairs = open_answer_pairs(file, on_bad_row="skip")
    assert len(pairs) == 1 and [bad.reason for bad in pairs.bad] == ["image names a missing file"] * 3


def test_the_image_root_may_hold_links_that_lead_out_but_names_may_not(tmp_path):
    file = folder_of(tmp_path / "data", [povid(image="coco/red.png")])
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "coco").symlink_to(tmp_path / "data" / "coco")
    assert open_answer_pairs(file, image_root=tmp_path / "root")[0].images[0].content() == RED
    file = folder_of(tmp_path / "data", [povid(image="../data/coco/red.png")])
    with pytest.raises(UserError, match="leads out of the folder"):
        open_answer_pairs(file, image_root=tmp_path / "root")
    with pytest.raises(UserError, match="is not a folder"):
        open_answer_pairs(file, image_root=tmp_path / "nowhere")


def test_rows_that_share_an_image_share_a_group(tmp_path):
    ask = lambda question, *shown: AnswerPair.ask(question, [Media.image(image) for image in shown], "a", "b")
    write_answer_pairs([ask("x", RED), ask("y", RED), ask("x", BLUE), ask("x"), ask("x"), ask("y")], tmp_path / "p")
    groups = open_answer_pairs(tmp_path / "p").groups()
    assert [groups.index(group) for group in groups] == [0, 0, 2, 3, 3, 5]


# -- bad rows -----------------------------------------------------------------------------------------------------

BAD = {
    "conversations has a turn of an unknown role": povid(conversations=[{"from": "dog", "value": "x"}] * 2),
    "conversations has no question and answer": povid(conversations=[]),
    "rejected_conversations is not one answer": povid(rejected_conversations=turns("a", "b", "c")),
    "Message.parts[0] is not valid Unicode (a lone surrogate): str '\\ud800'": povid(
        conversations=turns("a", "\ud800")
    ),
    "conversations has a turn without content": povid(conversations=[{"from": "human"}] * 2),
    "conversations has an empty text": povid(conversations=turns("a", " ")),
    "the item is not a JSON object": "no object",
}


@pytest.mark.parametrize("reason", BAD)
def test_bad_rows_are_named_and_counted(tmp_path, reason):
    file = folder_of(tmp_path, [povid(), BAD[reason], povid(id="8")])
    with pytest.raises(BadRow, match=r"Row 1 \(counted from 0\)"):
        open_answer_pairs(file)
    with pytest.raises(BadRow, match=r"Row 1 \(counted from 0\)"):
        list(stream_answer_pairs(file))
    pairs, stream = open_answer_pairs(file, on_bad_row="skip"), stream_answer_pairs(file, on_bad_row="skip")
    assert len(pairs) == 2 == len(list(stream))
    assert [bad.reason for bad in pairs.bad] == [reason] == [bad.reason for bad in stream.bad]


def test_places_and_images_must_agree(tmp_path):
    asked = turns("<image> and <image>?", "x")
    pairs = open_answer_pairs(folder_of(tmp_path, [povid(conversations=asked)]))
    with pytest.raises(BadRow, match="the number of images is not the number of their places"):
        pairs[0]
    (tmp_path / "coco" / "red.png").write_bytes(RED[:30])
    with pytest.raises(BadRow, match="Row 0 .*: the image is unreadable"):
        open_answer_pairs(folder_of(tmp_path, [povid()]).with_name("data.json")) and (
            (tmp_path / "coco" / "red.png").write_bytes(RED[:30]),
            open_answer_pairs(tmp_path / "data.json")[0],
        )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "line 1 has 'nothing' where the array's"),
        ("{}", "where the array's"),
        ("[{},\n{]", "broken in item 1 .*line 2"),
        ("[{} {}]", "where a comma or ]"),
        ("[{}", "where a comma or ]"),
        ("[{},", "where the array's ]"),
        ("[" * 3000, "broken in item 0"),
        ("\udcff", "not UTF-8"),
    ],
)
def test_broken_arrays_are_refused_with_their_place(tmp_path, text, says):
    (tmp_path / "x.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=says):
        open_answer_pairs(tmp_path / "x.json", format="povid")


def test_an_array_with_a_byte_order_mark_and_wide_characters(tmp_path):
    folder_of(tmp_path, [])
    rows = [povid(id="ä€😀"), povid(id="z", conversations=turns("<image>¿?", "sí"))]
    (tmp_path / "x.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(rows, ensure_ascii=False).encode())
    pairs = open_answer_pairs(tmp_path / "x.json")
    assert [pair.meta["id"] for pair in pairs.iter_good()] == ["ä€😀", "z"] and pairs[1].chosen == "sí"


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 10**400)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["<image>", "coco/red.png", "human", "gpt", "user", "image", "text"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["from", "value", "role", "content", "type", "text", "score", "response", "bytes", "path"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_hostile_rows_end_in_pairs_or_user_errors(data, tmp_path):
    format = data.draw(st.sampled_from(sorted(ANSWER_READERS)))
    columns = (*ANSWER_READERS[format].needs, *ANSWER_READERS[format].also, *ANSWER_READERS[format].cheap)
    row = st.fixed_dictionaries({}, optional=dict.fromkeys(columns, json_values))
    rows = data.draw(st.lists(row | json_values, max_size=4))
    name = data.draw(st.sampled_from(["data.json", "data.jsonl"]))
    file = folder_of(tmp_path, [*rows, dict.fromkeys(columns)], name)
    found = []
    for read in (open_answer_pairs, stream_answer_pairs):
        try:
            opened = read(file, format=format, on_bad_row="skip")
            found.append(list(opened.iter_good() if read is open_answer_pairs else opened))
            if read is open_answer_pairs:
                assert len(opened.groups()) == len(opened.contents()) == len(opened)
        except UserError:
            found.append([])
    assert repr(found[0]) == repr(found[1])  # NaN in meta does not equal itself
