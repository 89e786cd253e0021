"""POPE, CHAIR and AMBER: the figures equal the official rules, written out a second time here, on the real files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from palate.errors import UserError
from palate.randomness import key, uniform
from vlm.evaluate import Amber, Chair, Pope, Question, read_amber, read_chair, read_pope
from vlm.evaluate.amber import Annotation
from vlm.evaluate.pope import read_answer
from vlm.evaluate.vectors import WordVectors, read_vectors
from vlm.evaluate.vocabulary import Vocabulary, coco, read_vocabulary

DATA = Path(__file__).parents[3] / "shared" / "data"
needs_pope = pytest.mark.skipif(not (DATA / "pope").is_dir(), reason="needs ../shared/data/pope")
needs_amber = pytest.mark.skipif(not (DATA / "amber").is_dir(), reason="needs ../shared/data/amber")


def pick(options: Any, *parts: Any) -> Any:
    """Return one of the options, depending on the parts and nothing else."""
    return options[key(0, repr(parts), 0, "test") % len(options)]


# --- POPE ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("No", "no"),
        ("No, there is no dog.", "no"),
        ("There is not.", "no"),
        ("Yes. There is no doubt.", "yes"),  # only the first sentence counts
        ("no,", "no"),
        ("NO", "yes"),  # the rule knows three words
        ("no!", "yes"),
        ("There isn't one.", "yes"),
        ("Nothing", "yes"),
        ("No\nReally", "yes"),  # split at spaces only
        ("", "yes"),
    ],
)
def test_pope_reads_an_answer_as_its_script_does(text: str, read: str) -> None:
    assert read_answer(text) == read


def official_pope(answers: list[str], labels: list[str]) -> dict[str, float]:
    """POPE's evaluation, re-told: https://github.com/RUCAIBox/POPE (MIT)."""
    tp = fp = tn = fn = 0
    for text, label in zip(answers, labels, strict=True):
        sentence = text[: text.index(".")] if "." in text else text
        tokens = "".join(c for c in sentence if c != ",").split(" ")
        yes = not ("No" in tokens or "not" in tokens or "no" in tokens)
        tp += yes and label == "yes"
        fp += yes and label == "no"
        tn += not yes and label == "no"
        fn += not yes and label == "yes"
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    return {
        "accuracy": (tp + tn) / (tp + fp + tn + fn),
        "precision": precision,
        "recall": recall,
        "F1": 2 * precision * recall / (precision + recall),
        "yes-ratio": (tp + fp) / (tp + fp + tn + fn),
    }


@needs_pope
def test_pope_on_the_real_questions() -> None:
    path = DATA / "pope" / "coco_pope_random.json"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    says = {
        "yes": ["Yes", "Yes, there is.", "Yes. It is not far.", "I see one", "NO WAY. There is none"],
        "no": ["No", "No, there is no such thing.", "There is not", "I think there are no, no", "no."],
    }
    answers = {}
    for row in rows:
        right = uniform(0, str(row["question_id"]), 0, "right") < (0.9 if row["label"] == "yes" else 0.7)
        said = row["label"] if right else {"yes": "no", "no": "yes"}[row["label"]]
        answers[str(row["question_id"])] = pick(says[said], row["question_id"])
    result = read_pope(path).score(answers)
    expected = official_pope(list(answers.values()), [row["label"] for row in rows])
    assert {name: result[name].value for name in expected} == pytest.approx(expected, abs=1e-12)
    assert result["accuracy"].n == 3000 and result["accuracy"].clusters == 500
    assert all(result[name].low < expected[name] < result[name].high for name in expected)
    assert result["length"].value == pytest.approx(sum(len(a.split()) for a in answers.values()) / 3000)
    assert len(result.findings) == round((1 - expected["accuracy"]) * 3000)


def test_pope_by_hand() -> None:
    """Truth y y n n, answers y n y n: every figure is 1/2, from TP = FP = TN = FN = 1."""
    questions = [Question(str(k), f"{k}.jpg", "Is there?") for k in range(4)]
    truth = dict(zip("0123", ("yes", "yes", "no", "no"), strict=True))
    result = Pope(questions, truth).score(dict(zip("0123", ("Yes", "No", "Yes", "No"), strict=True)))
    assert {f.name: f.estimate.value for f in result.figures if f.name != "length"} == dict.fromkeys(
        ("accuracy", "precision", "recall", "F1", "yes-ratio"), 0.5
    )
    assert [result.counts[f"{s} {c}"] for s in ("true", "false") for c in ("positives", "negatives")] == [1, 1, 1, 1]


# --- AMBER -----------------------------------------------------------------------------------------------------------

PLURALS = {"dog": "dogs", "bench": "benches", "knife": "knives", "bus": "buses", "child": "children", "box": "boxes"}


def official_amber_descriptions(
    answers: list[tuple[dict[str, Any], list[str]]],
    association: dict[str, list[str]],
    safe_everywhere: set[str],
    similar: Callable[[str, str], bool],
) -> dict[str, float]:
    """The generative part of AMBER's script, re-told on nouns that are known: (annotation, nouns) for each answer.

    Words for an object (its own last) are searched in order; the first that fits is credited to its object. A noun
    is hallucinated unless it is safe, listed for an object, or similar to such a word.
    """
    listed = set(association).union(*association.values())
    chair = [0, 0]
    cover = [0, 0]
    cog = [0, 0]
    clean = 0
    for annotation, all_nouns in answers:
        nouns = [noun for noun in all_nouns if noun in listed]

        def expand(names: list[str]) -> tuple[list[str], list[int]]:
            words, owners = [], []
            for index, name in enumerate(names):
                words += association[name]
                owners += [index] * len(association[name])
            return words + names, owners + list(range(len(names)))

        safe, safe_owner = expand(annotation["truth"])
        hallu, hallu_owner = expand(annotation["hallu"])
        named, imagined, bad = set(), set(), 0
        for noun in nouns:
            if noun in safe_everywhere:
                continue
            if noun in safe:
                named.add(safe_owner[safe.index(noun)])
                continue
            if noun in hallu:
                imagined.add(hallu_owner[hallu.index(noun)])
            near = [i for i, word in enumerate(hallu) if similar(noun, word)]
            if near:
                imagined.add(hallu_owner[near[0]])
            near = [i for i, word in enumerate(safe) if similar(noun, word)]
            if near:
                named.add(safe_owner[near[0]])
                continue
            bad += 1
        chair[0] += bad
        chair[1] += len(nouns)
        cover[0] += len(named)
        cover[1] += len(annotation["truth"])
        cog[0] += len(imagined)
        cog[1] += len(annotation["hallu"])
        clean += bad == 0
    return {
        "CHAIR": chair[0] / chair[1],
        "Cover": cover[0] / cover[1],
        "Hal": 1 - clean / len(answers),
        "Cog": cog[0] / cog[1],
    }


def describe(annotation: dict[str, Any], everything: list[str]) -> tuple[list[str], str]:
    """Return the nouns of a made-up description, and its text: some of the truth, of the imagined, and of anything."""
    name = annotation["id"]
    nouns = [w for w in annotation["truth"] if uniform(0, f"{name}{w}", 0, "truth") < 0.7]
    nouns += [w for w in annotation["hallu"] if uniform(0, f"{name}{w}", 0, "hallu") < 0.2]
    nouns += [pick(everything, name, k) for k in range(key(0, str(name), 0, "more") % 4)]
    shown = [PLURALS.get(w, w) if uniform(0, f"{name}{w}", 0, "plural") < 0.5 else w for w in nouns]
    return nouns, "".join(f"There is {w} in the photo. " for w in shown)


@needs_amber
@pytest.mark.parametrize("similarity", [False, True])
def test_amber_descriptions_on_the_real_files(similarity: bool) -> None:
    folder = DATA / "amber"
    annotations = [a for a in json.loads((folder / "annotations.json").read_text()) if a["type"] == "generative"]
    association = json.loads((folder / "relation.json").read_text())
    quirks = {"sunglasses", "earrings", "slippers", "chopsticks"}  # no singular: neither script ever finds them
    everything = sorted(set(association).union(*association.values()) - quirks)
    made = [describe(annotation, everything) for annotation in annotations]
    if similarity:  # words of one last letter and length
        similar = lambda a, b: (a[-1], len(a)) == (b[-1], len(b))
    else:
        similar = lambda a, b: a == b
    safe = set((folder / "safe_words.txt").read_text().splitlines())
    nouns = [[n for n in said if n not in quirks] for said, _ in made]
    expected = official_amber_descriptions(list(zip(annotations, nouns, strict=True)), association, safe, similar)
    benchmark = read_amber(folder, "generative", similar=similar if similarity else None)
    result = benchmark.score({str(a["id"]): text for a, (_, text) in zip(annotations, made, strict=True)})
    assert {name: result[name].value for name in expected} == pytest.approx(expected, abs=1e-12)
    assert all(0.02 < value < 0.98 for value in expected.values()), expected
    assert result["Hal"].n == 1004 and result.left_out == 0


@needs_amber
def test_amber_questions_on_the_real_files() -> None:
    """Against the counts of AMBER's script, by question type; 'No' is the positive class, and 'no' is no answer."""
    folder = DATA / "amber"
    truth = {a["id"]: a for a in json.loads((folder / "annotations.json").read_text())}
    benchmark = read_amber(folder, "discriminative")
    answers = {q.id: pick(["Yes", "No", "No", "no", "Yes."], q.id) for q in benchmark.questions}
    result = benchmark.score(answers)
    kinds = {"existence": ("discriminative-hallucination",), "relation": ("discriminative-relation", "relation")}
    for part, types in {**kinds, "questions": sum(kinds.values(), ())}.items():
        rows = [(truth[int(i)]["truth"], said) for i, said in answers.items() if truth[int(i)]["type"] in types]
        right = sum((t == "yes" and s == "Yes") or (t == "no" and s == "No") for t, s in rows)
        said_no = [t for t, s in rows if s == "No"]
        is_no = [s for t, s in rows if t == "no"]
        precision, recall = said_no.count("no") / len(said_no), (is_no.count("No") / len(is_no) if is_no else 0)
        assert result[f"{part}/accuracy"].value == pytest.approx(right / len(rows), abs=1e-12)
        assert result[f"{part}/precision"].value == pytest.approx(precision, abs=1e-12)
        assert result[f"{part}/recall"].value == pytest.approx(recall, abs=1e-12)
        # The script adds a small number below the line of F1 (1e-4, for existence 1e-3) and rounds before and after.
        official = 2 * precision * recall / (precision + recall + 1e-4)
        assert result[f"{part}/F1"].value == pytest.approx(official, abs=1e-4)
    assert result.counts["of them neither"] == sum(said in ("no", "Yes.") for said in answers.values())
    assert any("say neither" in note for note in result.notes)


@needs_amber
def test_a_first_word_can_be_an_answer() -> None:
    benchmark = read_amber(DATA / "amber", "existence", first_word=True)
    said = ["No, there is none.", "yes.", "Maybe no"]
    assert [benchmark.read_answer(text) for text in said] == ["no", "yes", ""]
    assert [read_amber(DATA / "amber", "existence").read_answer(text) for text in said] == ["", "", ""]


def small_amber(**how: Any) -> Amber:
    relation = {"sky": [], "person": ["man", "woman"], "beach": ["sand"], "dog": [], "sand": [], "bird": ["pigeon"]}
    annotation = Annotation("generative", ("person", "beach", "sand"), ("dog", "bird"))
    return Amber(
        [Question("1", "a.jpg", "Describe this image.")], {"1": annotation}, relation, frozenset({"sky"}), **how
    )


def test_amber_by_hand() -> None:
    """Listed nouns: man, sand, dogs, pigeon, sky, dog. Sky is safe, man and sand are there; dog twice and pigeon are
    not: CHAIR 3/6. Sand is listed for the beach, and covers that alone: Cover 2/3. Dog and bird are imagined: Cog 2/2."""
    text = "A man on the sand with two dogs, a pigeon and a kettle under the sky. The dog is happy."
    result = small_amber().score({"1": text})
    assert {name: result[name].value for name in ("CHAIR", "Cover", "Hal", "Cog")} == {
        "CHAIR": 0.5,
        "Cover": pytest.approx(2 / 3),
        "Hal": 1.0,
        "Cog": 1.0,
    }
    assert result.findings[0].wrong == ["dog", "pigeon", "dog"]


def test_similar_words_excuse_a_noun() -> None:
    """Vectors make dog like man (cosine .96 > .8), so a dog counts as the person that is there; bird stays alone."""
    vectors = WordVectors({"dog": np.array([1, 0.3]), "man": np.array([1.0, 0]), "bird": np.array([0, 1.0])})
    result = small_amber(similar=vectors).score({"1": "A dog and a bird."})
    assert result["CHAIR"].value == 0.5 and result["Cover"].value == pytest.approx(1 / 3)
    assert result.findings[0].wrong == ["bird"]


def test_vectors_are_read_for_the_wanted_words(tmp_path: Path) -> None:
    path = tmp_path / "vectors.txt"
    path.write_text("3 2\ndog 1 0\ncat 0.9 0.1\nkettle x y\n")
    vectors = read_vectors(path, {"dog", "cat"})
    assert vectors("dog", "cat") and not vectors("dog", "kettle")
    with pytest.raises(UserError, match="line 4"):
        read_vectors(path, {"kettle"})
    with pytest.raises(UserError, match="none of the 1 words"):
        read_vectors(path, {"sofa"})


# --- CHAIR -----------------------------------------------------------------------------------------------------------


def test_chair_by_hand() -> None:
    """a.jpg names dog, dog, cat, of which cat is absent, and two of three objects; b.jpg names its one object.
    CHAIR_s 1/2, CHAIR_i 1/4, recall (1 + 1) / (3 + 1), 5.5 words on average."""
    truth = {"a.jpg": frozenset({"dog", "bench", "person"}), "b.jpg": frozenset({"car"})}
    answers = {"a.jpg": "Two dogs and a puppy chase a kitten.", "b.jpg": "A yellow taxi."}
    result = Chair(truth, coco()).score(answers)
    assert {f.name: f.estimate.value for f in result.figures} == {
        "CHAIR_s": 0.5,
        "CHAIR_i": 0.25,
        "recall": 0.5,
        "length": 5.5,
    }
    assert [(f.question.image, list(f.wrong)) for f in result.findings] == [("a.jpg", ["kitten (cat)"])]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Two men, a hot dog and hot dogs", ["person", "hot dog", "hot dog"]),
        ("a baby elephant beside a baby", ["elephant", "person"]),
        ("a passenger train", ["train"]),
        ("a toilet seat and the seat", ["toilet"]),
        ("a bicycle seat", ["bicycle", "chair"]),
        ("the home plate", []),
        ("a stop sign, traffic lights and wine glasses", ["stop sign", "traffic light", "wine glass"]),
        ("a dog's teddy bear in a bow tie", ["dog", "teddy bear", "tie"]),
        ("doghouses and cattle", ["cow"]),
    ],
)
def test_objects_of_coco_in_text(text: str, names: list[str]) -> None:
    assert [m.name for m in Chair({}, coco()).mentions(text)] == names


def test_a_mention_says_where_it_stands() -> None:
    text = "Three Teddy Bears, and a dog."
    assert [text[m.start : m.end] for m in coco().find(text)] == ["Teddy Bears", "dog"]


def test_the_list_of_coco_has_all_eighty_names_once() -> None:
    assert len(set(coco().names)) == 80 and {"skis", "hair drier", "tv", "potted plant"} <= set(coco().names)
    assert all(coco().name(name) == name for name in coco().names)


def write(path: Path, data: Any) -> Path:
    path.write_text(json.dumps(data))
    return path


def test_chair_reads_cocos_files(tmp_path: Path) -> None:
    """What a reference caption names is there, too, as in CHAIR; answers may name the image by id or by file."""
    images = [{"id": 7, "file_name": "a.jpg"}, {"id": 8, "file_name": "b.jpg"}]
    categories = [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}]
    boxes = [{"image_id": 7, "category_id": 18}, {"image_id": 7, "category_id": 1}]
    instances = write(tmp_path / "i.json", {"images": images, "categories": categories, "annotations": boxes})
    captions = write(
        tmp_path / "c.json", {"images": images, "annotations": [{"image_id": 8, "caption": "A kitten on two sofas"}]}
    )
    chair = read_chair([instances, captions], coco())
    assert chair.truth == {"a.jpg": {"dog", "person"}, "b.jpg": {"cat", "couch"}}
    assert chair.aliases == {"7": "a.jpg", "8": "b.jpg"}
    assert any("reference captions" in note for note in read_chair([instances], coco()).notes)
    assert not any("reference captions" in note for note in chair.notes)


def test_chair_reads_rows_of_objects_with_a_list_of_ones_own(tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("red circle, crimson disc\nblue square\n")
    vocabulary = read_vocabulary(words)
    rows = [
        {"image": "1.png", "objects": ["red circle"]},
        {"image": "2.png", "objects": ["blue square", "crimson disc"]},
    ]
    path = tmp_path / "truth.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    chair = read_chair([path], vocabulary)
    result = chair.score({"1.png": "Crimson discs and a blue square.", "2.png": "a blue square"})
    assert result["CHAIR_i"].value == pytest.approx(1 / 3) and result["recall"].value == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([{"image": "a.jpg", "objects": ["dragon"]}], "dragon"),
        ([{"image": "a.jpg"}], "expected"),
        ([3], "expected"),
        ({"images": [{"id": 1}], "annotations": []}, "no COCO file"),
        ({"images": [], "annotations": [{"image_id": 4, "caption": "x"}]}, "no COCO file"),
        ({"images": [], "annotations": []}, "no image with its objects"),
    ],
)
def test_chair_refuses_other_files(tmp_path: Path, data: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        read_chair([write(tmp_path / "x.json", data)], coco())


def test_two_objects_cannot_share_a_synonym() -> None:
    with pytest.raises(UserError, match="stands for both 'dog' and 'cat'"):
        Vocabulary({"dog": ["pet"], "cat": ["pets"]})


@pytest.mark.parametrize(
    "line",
    [
        "",
        "hello",
        '{"question_id": 1}',
        "[1, 2",
        '{"question_id": 1, "image": "a", "text": "?", "label": "maybe"}',
    ],
)
def test_pope_refuses_other_files(tmp_path: Path, line: str) -> None:
    path = tmp_path / "pope.json"
    path.write_text(line)
    with pytest.raises(UserError):
        read_pope(path)


def test_amber_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lacks annotations\.json"):
        read_amber(tmp_path)
    with pytest.raises(UserError, match="did you mean 'existence'"):
        read_amber(tmp_path, "existance")  # type: ignore[arg-type]
    write(tmp_path / "annotations.json", [{"id": 1, "type": "generative", "truth": ["dog", ["x"]], "hallu": []}])
    write(tmp_path / "relation.json", {"dog": []})
    (tmp_path / "safe_words.txt").write_text("")
    with pytest.raises(UserError, match="no questions of the task existence"):
        read_amber(tmp_path, "existence")
    write(tmp_path / "query_generative.json", [{"id": 1, "image": "a.jpg", "query": "Describe."}])
    with pytest.raises(UserError, match=r"not in relation\.json"):
        read_amber(tmp_path, "generative")
