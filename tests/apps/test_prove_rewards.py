"""The proofs' section on reward models: what is claimed of numbers made by hand, and one trial in miniature."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from apps import prove
from apps.prove_rewards import CLAIMS, TESTS, TRIAL, Result, failed, prepare, run_trial, table
from apps.trials import Setting
from palate.errors import UserError
from palate.statistics import share


def result(right: int, of_taste: int = 50) -> Result:
    """A scorer that is right `right` times of 100, where the taste is `of_taste` times."""
    rates = {"learned": right, "toy": 50, "toy-taste": of_taste}
    found = {name: share([1.0] * k + [0.0] * (100 - k)) for name, k in rates.items()}
    return Result(dict.fromkeys(TESTS, found), 60.0, {"commit": "abc"})


def test_claims_by_hand() -> None:
    """Nine tenths of 50 % are 45 %."""
    assert failed({TRIAL.name: [result(45), result(90)]}, [0, 1]) == []
    bad = failed({TRIAL.name: [result(45), result(44)]}, [0, 1])
    assert bad == [f"seed 1: {claim.words}" for claim in CLAIMS]
    assert "on new prompts the learned scorer reaches at least 90 % of the hidden taste's accuracy" in bad[1]


def test_the_section_has_every_test_and_seed() -> None:
    found = {TRIAL.name: [result(45), result(44)]}
    lines = prove.section(found, table(found, [0, 1]), [claim.words for claim in CLAIMS], failed(found, [0, 1]))
    rows = [line for line in lines if line.startswith("| ")]
    assert len(rows) == 1 + len(TESTS) * 2 and len({row.count("|") for row in rows}) == 1
    assert "| 88.0 % |" in rows[2]
    assert sum(line.startswith("- does not hold for seed 1") for line in lines) == len(CLAIMS)


def test_a_trial_in_miniature(tmp_path: Path) -> None:
    """Trained for 2 steps, judged, written, and read again; another trial in its folder is refused."""
    short = replace(TRIAL, overrides=("--train.steps", "2", "--train.batch_size", "8", "--eval.every", "2"))
    setting = Setting(tmp_path, pairs=60, held_out=20)
    for seed in (None, 3):
        prepare(seed, setting)
    first = run_trial(short, 3, setting)
    for test in TESTS:
        found = first.accuracy[test]
        assert set(found) == {"learned", "toy", "toy-taste"} and all(0 <= e.low <= e.high <= 1 for e in found.values())
        assert first.share(test) == found["learned"].value / found["toy-taste"].value
    assert first.accuracy["new battles"]["toy-taste"] != first.accuracy["new prompts"]["toy-taste"]
    assert run_trial(short, 3, setting) == first  # read, with the same seconds
    with pytest.raises(UserError, match="another trial"):
        run_trial(replace(short, overrides=("--train.steps", "3")), 3, setting)
