"""`palate captions`: who gets which caption, what is kept and asked again, and what is measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from apps.captioning import AMOUNTS, STRENGTHS, Paraphraser, Rules, caption_pairs
from apps.captions import main
from palate.errors import UserError
from palate.readers import open_pairs, write_pairs
from palate.records import Media, Pair
from tests.tiny import noise_image
from vlm.answering import Answer, Ask

PICTURES = [Media.image(noise_image(k)) for k in range(3)]


class Scripted:
    """Says about a picture which it is; rewrites a caption by a mark; can fail, or be cut."""

    def __init__(self, **odd: Answer) -> None:
        self.settings = {"model": "scripted"}
        self.asked: list[Ask] = []
        self.odd = odd

    def answer(self, asks: Sequence[Ask]) -> Iterator[tuple[int, Answer]]:
        for number, ask in enumerate(asks):
            self.asked.append(ask)
            if ask.images:
                said = f"picture{PICTURES.index(ask.images[0])}"
            else:
                said = "changed " + ask.messages[0].text.rsplit("Caption: ", 1)[1]
            yield (
                number,
                self.odd.get(said, Answer(f"<answer>{said}</answer>" if not ask.images else said, finish="stop")),
            )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three pairs over three pictures, the first picture in all of them."""
    path = tmp_path / "pairs.parquet"
    prompts = ["two dogs on a bench", "zzz", "a red car"]
    write_pairs([Pair(prompts[k], PICTURES[0], PICTURES[1 + k % 2], meta={"k": k}) for k in range(3)], path)
    return path


def captions(path: Path) -> list[tuple[str | None, str | None]]:
    pairs = open_pairs(path)
    return [(pairs[k].prompt_chosen, pairs[k].prompt_rejected) for k in range(len(pairs))]


def test_rules_change_the_rejected_prompt(data: Path, tmp_path: Path) -> None:
    """The chosen image keeps the prompt; a prompt without a listed word is left out and counted; meta says what was done."""
    made = caption_pairs(open_pairs(data), tmp_path / "out.parquet", "perturb", perturber=Rules("weak", seed=3))
    assert made.pairs == 2 and made.left_out == {"no word of the lists is in it": 1}
    (first, changed), (second, other) = captions(tmp_path / "out.parquet")
    assert (first, second) == ("two dogs on a bench", "a red car")
    assert changed != first and other != second
    meta = open_pairs(tmp_path / "out.parquet")[0].meta
    assert meta["k"] == 0 and meta["captions"]["strength"] == "weak" and meta["captions"]["method"] == "perturb"


def test_a_stronger_change_swaps_more() -> None:
    text = "two red dogs and a small cat under a wooden bench"
    counts = []
    for strength in STRENGTHS:
        (made, why), = Rules(strength).perturb([text], Path("unused"))  # fmt: skip
        assert not why
        counts.append(sum(a != b for a, b in zip(text.split(), made.split(), strict=False)))
    assert 0 < counts[0] < counts[1] < counts[2]


def test_every_picture_is_described_once_and_runs_go_on(data: Path, tmp_path: Path) -> None:
    """Three pictures, three questions; what failed is left out, and alone asked for again."""
    out = tmp_path / "out.parquet"
    captioner = Scripted(picture2=Answer(failure="status 500"))
    made = caption_pairs(open_pairs(data), out, "caption", captioner=captioner)
    assert len(captioner.asked) == 3 and made.left_out == {"status 500": 1}
    assert captions(out) == [("picture0", "picture1")] * 2
    again = Scripted()
    assert caption_pairs(open_pairs(data), out, "caption", captioner=again).pairs == 3
    assert [ask.images for ask in again.asked] == [(PICTURES[2],)]
    assert captions(out) == [("picture0", "picture1"), ("picture0", "picture2"), ("picture0", "picture1")]


def test_hybrid_perturbs_the_rejected_description(data: Path, tmp_path: Path) -> None:
    """As in the paper's DCPO-h: both are described, and the description of the rejected image is changed, once each."""
    writer = Scripted()
    made = caption_pairs(
        open_pairs(data),
        tmp_path / "out.parquet",
        "hybrid",
        captioner=Scripted(),
        perturber=Paraphraser(writer, "strong"),
    )
    assert made.pairs == 3 and len(writer.asked) == 2
    assert captions(tmp_path / "out.parquet")[1] == ("picture0", "changed picture2")
    assert AMOUNTS["strong"] in writer.asked[0].messages[0].text and "{" not in writer.asked[0].messages[0].text


def test_replies_that_cannot_be_used_are_counted(data: Path, tmp_path: Path) -> None:
    odd = {
        "changed zzz": Answer("zzz", finish="stop"),
        "changed a red car": Answer("<answer>a blue", finish="length"),
    }
    made = caption_pairs(open_pairs(data), tmp_path / "out.parquet", "perturb", perturber=Paraphraser(Scripted(**odd)))
    assert made.pairs == 1
    assert made.left_out == {"the reply changes nothing": 1, "the reply is empty or was cut": 1}


def test_the_control_gives_both_sides_the_winner_s_caption(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    caption_pairs(open_pairs(data), out, "hybrid", captioner=Scripted(), perturber=Rules(), winner_only=True)
    assert captions(out) == [("picture0", "picture0")] * 3


def test_the_gap_is_chosen_minus_rejected(data: Path, tmp_path: Path) -> None:
    """A scorer that gives a caption's last digit: with own captions the gap is 0 - 1, 0 - 2, 0 - 1; with the prompt 0."""

    def score(prompts: list[str], images: list[object]) -> SimpleNamespace:
        return SimpleNamespace(values=np.array([float(p[-1]) if p[-1].isdigit() else 5.0 for p in prompts]))

    scorer = SimpleNamespace(score=score, unit="digits")
    made = caption_pairs(open_pairs(data), tmp_path / "out.parquet", "caption", captioner=Scripted(), scorer=scorer)
    assert made.gap_before is not None and made.gap_before.value == 0
    assert made.gap_after is not None and made.gap_after.value == pytest.approx(-4 / 3)
    assert "similarity gap (digits), chosen - rejected" in str(made)


def test_bad_pictures_are_named_or_left_out(tmp_path: Path) -> None:
    """A picture that does not decode is the failure of its question."""
    pair = Pair("a dog", PICTURES[0], replace(PICTURES[1], data=PICTURES[1].content()[:50]))
    write_pairs([pair], tmp_path / "pairs.parquet")
    with pytest.raises(UserError, match="No pair got its captions"):
        main(
            [
                *("--data", str(tmp_path / "pairs.parquet"), "--out", str(tmp_path / "out.parquet")),
                *("--method", "caption", "--model", "toy:vlm"),
            ]
        )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "caption"], "Name who writes with --model"),
        (["--method", "perturb", "--writer"], "Name who writes with --model"),
        (["--method", "perturb", "--model", "toy:vlm"], "perturb works by rules"),
        (["--method", "perturb", "--winner-only"], "leaves both images the prompt"),
    ],
)
def test_what_cannot_be_is_refused(data: Path, words: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        main(["--data", str(data), "--out", str(tmp_path / "out.parquet"), *words])


def test_a_local_model_describes_and_the_result_trains_dcpo(data: Path, tmp_path: Path) -> None:
    """By the command, with the toy's vision-language model; the pairs satisfy `--data.captions dual`."""
    out = tmp_path / "out.parquet"
    question = ["--question", "Describe the picture."]
    main(["--data", str(data), "--out", str(out), "--method", "caption", "--model", "toy:vlm", *question])
    assert all(chosen and rejected for chosen, rejected in captions(out))
    assert open_pairs(out).column_missing("prompt_rejected") == 0
