"""The page of the proofs: sections made anew, sections kept, claims that hold and claims that do not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from apps import prove, prove_vlm
from apps.vlm_trials import VLMResult
from palate.statistics import Estimate, mean_interval, share

PAGE = Path(__file__).parents[2] / "docs" / "proofs.md"


def figures(wrong: int, of: int = 100) -> dict[str, Estimate]:
    rate = share([1.0] * wrong + [0.0] * (of - wrong))
    return {
        "answers": rate,
        "mentions": rate,
        "recall": share([1.0] * of),
        "length": mean_interval([2.0, 3.0]),
        "sampled": rate,
    }


def result(wrong: int, lost: float = 0.0) -> VLMResult:
    change = mean_interval([-lost - 0.001, -lost + 0.001] * 50)
    return VLMResult(figures(45), figures(wrong), change, 300, 60.0, 100, {"commit": "abc"})


def results(**changed: VLMResult) -> dict[str, list[VLMResult]]:
    good = {trial.name: [result(10), result(12)] for trial in prove_vlm.TRIALS}
    return {**good, **{name: [result(10), bad] for name, bad in changed.items()}}


def test_claims_by_hand() -> None:
    """45 % of 100 answers: 10 % is a third of it and apart; 31 % is more than two thirds; at 28 % intervals overlap."""
    assert prove_vlm.failed(results(), [0, 1]) == []
    assert prove_vlm.failed(results(BPO=result(31)), [0, 1]) == [
        "seed 1: BPO cuts the share of hallucinating answers by a third or more, intervals apart"
    ]
    near = result(28)
    assert near.trained["answers"].value < 2 / 3 * 0.45 and near.trained["answers"].high > near.base["answers"].low
    assert len(prove_vlm.failed(results(POVID=near), [0, 1])) == 1
    assert prove_vlm.failed(results(mDPO=result(10, lost=0.0201)), [0, 1]) == [
        "seed 1: mDPO loses at most 2 points of recall (lower end of the paired change)"
    ]


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    one = replace(result(7), trained={**figures(7), "mentions": share([])})
    one.write(tmp_path / "one.json")
    back = VLMResult.read(tmp_path / "one.json")
    assert str(back) == str(one)  # as text: NaN, where nothing was named, is not equal to itself


def test_a_section_names_what_fails_and_the_table_has_every_trial_and_seed() -> None:
    found = results(POVID=result(44))
    lines = prove.section(
        found,
        prove_vlm.table(found, [0, 1]),
        [claim.words for claim in prove_vlm.CLAIMS],
        prove_vlm.failed(found, [0, 1]),
    )
    rows = [line for line in lines if line.startswith("| ")]
    assert len(rows) == 2 + len(prove_vlm.TRIALS) * 2
    assert len({row.count("|") for row in rows}) == 1
    assert (
        "- does not hold for seed 1: POVID cuts the share of hallucinating answers by a third or more, intervals apart."
        in lines
    )
    assert sum(line.startswith("- holds for every seed") for line in lines) == len(prove_vlm.CLAIMS) - 1


def test_a_section_that_is_not_made_anew_stays() -> None:
    first = prove.page({"t2i": ["one", "", "### Claims", "", "- a"], "vlm": ["two"]}, "")
    assert (
        first
        == "# Proofs on the toy world\n\n## Text to image\n\none\n\n### Claims\n\n- a\n\n## Vision-language\n\ntwo\n"
    )
    assert prove.page({"vlm": ["three"]}, first) == first.replace("two", "three")
    assert prove.page({"t2i": ["four"]}, "") == "# Proofs on the toy world\n\n## Text to image\n\nfour\n"


def test_the_page_in_the_guides_survives() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert prove.page({}, text) == text
