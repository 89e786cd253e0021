"""Names, paths and objects -> scorers; what a scorer must be; and that naming one costs no torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from PIL import Image

from palate.errors import UserError
from rewards import SCORERS, ScoreBatch, Scorer, load_scorer


class Brightness:
    """A scorer of a user's own, without inheritance."""

    name, unit = "brightness", "share of white"

    def __init__(self, gain: float = 1.0) -> None:
        self.gain = gain

    def score(self, prompts, images) -> ScoreBatch:
        values = np.array([self.gain * np.asarray(i).mean() / 255 for i in images])
        return ScoreBatch(values, self.name, self.unit, weights="none", preprocess="none")


@pytest.fixture
def module(tmp_path, monkeypatch) -> str:
    (tmp_path / "my_scorers.py").write_text(
        textwrap.dedent(
            """
            from tests.rewards.test_loading import Brightness
            ready = Brightness(2.0)
            number = 3
            def make(gain): return Brightness(gain)
            def make_nothing(): return None
            """
        )
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_scorers", raising=False)
    return "my_scorers"


def test_import_rewards_needs_no_torch() -> None:
    code = "import sys, rewards; rewards.SCORERS; sys.exit('torch' in sys.modules or 'open_clip' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_hidden_taste_needs_no_torch() -> None:
    code = "import sys, rewards; rewards.load_scorer('toy-taste'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_object_passes_through() -> None:
    mine = Brightness()
    assert load_scorer(mine) is mine
    assert isinstance(mine, Scorer)


def test_own_scorers_load_by_module_and_attribute(module) -> None:
    grey = [Image.new("RGB", (2, 2), (51, 51, 51))]
    assert load_scorer(f"{module}:ready").score(["p"], grey).values == pytest.approx([0.4])
    assert load_scorer(f"{module}:make", gain=3).score(["p"], grey).values == pytest.approx([0.6])
    assert load_scorer(f"{module}:Brightness", gain=4).score(["p"], grey).values == pytest.approx([0.8])


@pytest.mark.parametrize(
    ("attribute", "options", "message"),
    [
        ("reddy", {}, "Unknown attribute of module my_scorers: 'reddy'; did you mean 'ready'"),
        ("number", {}, "is a int: neither a scorer nor a function"),
        ("make", {"gian": 1}, "does not take these options: .*It takes"),
        ("make_nothing", {}, "lacks name, unit, score"),
    ],
)
def test_own_scorers_that_are_none_say_why(module, attribute, options, message) -> None:
    with pytest.raises(UserError, match=message):
        load_scorer(f"{module}:{attribute}", **options)


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="Unknown scorer 'toy-tast'; did you mean 'toy-taste'.*hf-hub:owner/name"):
        load_scorer("toy-tast")
    with pytest.raises(UserError, match="Nor is there a module 'no_such_module'"):
        load_scorer("no_such_module:thing")
    with pytest.raises(UserError, match="it lacks name, unit, score"):
        load_scorer(3)
    with pytest.raises(UserError, match="'toy-taste' does not take these options|toy-taste does not take"):
        load_scorer("toy-taste", gain=3)


def test_a_missing_dependency_of_a_module_is_not_hidden(tmp_path, monkeypatch) -> None:
    (tmp_path / "needs_more.py").write_text("import a_package_that_is_not_there")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        load_scorer("needs_more:thing")


def test_a_folder_is_told_by_what_it_holds(published, folder, tmp_path) -> None:
    """scorer.json first, then open_clip's description, then transformers'."""
    assert load_scorer(folder, device="cpu").name.startswith("open_clip:")
    pick = published / "PickScore_v1"
    assert load_scorer(pick, device="cpu").name == "clip:PickScore_v1"
    shutil.copytree(pick, tmp_path / "mine")
    said = {"scorer": "clip", "options": {"convention": "logits", "name": "my taste"}}
    (tmp_path / "mine" / "scorer.json").write_text(json.dumps(said))
    mine = load_scorer(tmp_path / "mine", device="cpu")
    assert (mine.name, mine.unit) == ("my taste", "logit")
    assert load_scorer(tmp_path / "mine", device="cpu", convention="cosine").unit == "cosine"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no open_clip_config.json, config.json or scorer.json.*hpsv2.1:FOLDER"),
        ({"scorer.json": "{}"}, "names no scorer"),
        ({"scorer.json": "[1]"}, "names no scorer"),
        ({"scorer.json": '{"scorer": "pickscor"}'}, "did you mean 'pickscore'"),
        ({"config.json": '{"model_type": "bert"}'}, "is a 'bert' model of transformers; expected 'clip'"),
        ({"config.json": '{"model_type": "clip"}'}, "holds no weights, such as model.safetensors"),
        ({"config.json": "{"}, "cannot be read"),
        ({"open_clip_config.json": "{}"}, "describes no open_clip model"),
    ],
)
def test_folders_that_hold_no_scorer_say_why(files, message, tmp_path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        load_scorer(tmp_path, device="cpu")


def test_common_options_go_to_what_takes_them(module, tmp_path) -> None:
    """A scorer of one's own that knows no device or cache is made without them; the cache folder is not even made."""
    grey = [Image.new("RGB", (2, 2), (51, 51, 51))]
    made = load_scorer(f"{module}:make", device="cpu", batch_size=8, cache=tmp_path / "cache", gain=3)
    assert made.score(["p"], grey).values == pytest.approx([0.6])
    assert load_scorer("toy-taste", device="cpu", batch_size=8, cache=tmp_path / "cache").name == "toy-taste"
    assert not (tmp_path / "cache").exists()


def test_names_that_come_late_are_there() -> None:
    import rewards

    assert all(hasattr(rewards, name) for name in rewards.__all__)
    with pytest.raises(AttributeError, match="no attribute 'scorre'"):
        rewards.scorre  # noqa: B018


def test_every_entry_of_the_table_exists() -> None:
    import importlib

    for entry in SCORERS.values():
        module, _, attribute = entry.target.partition(":")
        assert callable(getattr(importlib.import_module(module), attribute)) and entry.summary


def test_a_batch_keeps_nan_and_reason_together() -> None:
    made = {"scorer": "s", "unit": "u", "weights": "w", "preprocess": "p"}
    with pytest.raises(ValueError, match="have a reason"):
        ScoreBatch(np.array([np.nan]), **made)
    with pytest.raises(ValueError, match="have a reason"):
        ScoreBatch(np.array([1.0]), failures={0: "why"}, **made)
    with pytest.raises(TypeError, match="float32"):
        ScoreBatch(np.zeros(2, dtype=np.float32), **made)
    batch = ScoreBatch(np.array([1.0, np.nan]), failures={1: "torn"}, **made)
    assert batch.ok.tolist() == [True, False]
    with pytest.raises(UserError, match="1 of 2 rows .row 1: torn"):
        batch.complete()
