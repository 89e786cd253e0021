"""A weighted sum of scorers: the formula, where its scale comes from, and whose failures it has."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from palate.errors import UserError
from rewards import Ensemble, Part, ScoreBatch, load_scorer
from tests.rewards.conftest import PROMPTS
from tests.rewards.counting import count
from tests.rewards.official import ARCHITECTURE


class Fixed:
    """A scorer that says what it was given."""

    unit = "u"

    def __init__(self, name: str, values: list[float]) -> None:
        self.name, self.values = name, values

    def score(self, prompts, images) -> ScoreBatch:
        values = np.array(self.values[: len(prompts)], dtype=np.float64)
        failures = {int(row): f"{self.name} fails" for row in np.flatnonzero(np.isnan(values))}
        return ScoreBatch(values, self.name, self.unit, f"hash of {self.name}", "none", failures=failures)


def test_the_sum_by_hand() -> None:
    """2 * (3 - 1) / 4 - .5 * (10 - 0) / 1 = -4; and 2 * (5 - 1) / 4 - .5 * 2 = 1."""
    ensemble = Ensemble([Part(Fixed("a", [3, 5]), 2, mean=1, std=4), Part(Fixed("b", [10, 2]), -0.5)])
    batch = ensemble.score(["p", "p"], [None, None])
    assert batch.values.tolist() == [-4.0, 1.0]
    assert (batch.scorer, batch.unit, batch.preprocess) == ("ensemble", "weighted sum", "none")


def test_a_failure_of_one_part_is_the_rows_failure() -> None:
    nan = float("nan")
    batch = Ensemble([Part(Fixed("a", [1, nan, nan])), Part(Fixed("b", [1, 1, nan]))]).score(["p"] * 3, [None] * 3)
    assert batch.ok.tolist() == [True, False, False]
    assert batch.failures == {1: "a: a fails", 2: "a: a fails"}


def test_the_hash_knows_parts_and_numbers() -> None:
    def made(weight: float, name: str = "a", std: float = 1.0) -> str:
        return Ensemble([Part(Fixed(name, [1]), weight, std=std)]).score(["p"], [None]).weights

    assert made(1) == made(1)
    assert len({made(1), made(2), made(1, "b"), made(1, std=2)}) == 4


def test_fitted_parts_have_mean_0_and_deviation_1() -> None:
    """Scores 1, 2, 3, 6 have mean 3 and deviation sqrt(14 / 3)."""
    ensemble = Ensemble.fitted([Part(Fixed("a", [1, 2, 3, 6, float("nan")]), 2)], ["p"] * 5, [None] * 5)
    assert (ensemble.parts[0].mean, ensemble.parts[0].std) == pytest.approx((3, (14 / 3) ** 0.5))
    values = ensemble.score(["p"] * 4, [None] * 4).values
    assert values.mean() == pytest.approx(0, abs=1e-12) and values.std(ddof=1) == pytest.approx(2)
    with pytest.raises(UserError, match="no two different scores"):
        Ensemble.fitted([Part(Fixed("a", [1, 1]))], ["p"] * 2, [None] * 2)


def _spec(published, tmp_path) -> str:
    path = tmp_path / "mine.yaml"
    weights = published / "HPS_v2_compressed.pt"
    path.write_text(
        f"- {{scorer: 'hpsv2:{weights}', weight: 2, mean: 0.1, std: 0.5, options: {{architecture: {ARCHITECTURE}}}}}\n"
        f"- {{scorer: 'clipscore-logits:{ARCHITECTURE}:{weights}'}}\n"
        f"- {{scorer: 'clipscore-cosine:{ARCHITECTURE}:{weights}', weight: 3}}\n"
    )
    return f"ensemble:{path}"


def test_a_yaml_file_describes_one(published, tmp_path, images) -> None:
    ensemble = load_scorer(_spec(published, tmp_path), device="cpu")
    parts = [part.scorer.score(PROMPTS, images[:4]).values for part in ensemble.parts]
    batch = ensemble.score(PROMPTS, images[:4])
    assert batch.values == pytest.approx(2 * (parts[0] - 0.1) / 0.5 + parts[1] + 3 * parts[2], abs=1e-4)
    assert batch.scorer == "ensemble:mine" and batch.dtype == "float32"
    matrix = ensemble.score_matrix(PROMPTS[:2], images[:3]).values
    assert matrix[1] == pytest.approx(ensemble.score_images(PROMPTS[1], images[:3]).values, abs=1e-4)


def test_parts_share_their_encoder(published, tmp_path, images) -> None:
    """The last two parts read the same vectors: 4 images, not 8."""
    ensemble = load_scorer(_spec(published, tmp_path), device="cpu")
    counts = [count(part.scorer) for part in ensemble.parts]
    ensemble.score(PROMPTS, images[:4])
    assert counts[0].images == 4 and counts[1].images + counts[2].images == 4


def test_gradients_are_those_of_the_sum(published, tmp_path, images) -> None:
    ensemble = load_scorer(_spec(published, tmp_path), device="cpu")
    levels = np.stack([np.asarray(image.resize((30, 26))) for image in images[:2]])
    pixels = (torch.from_numpy(levels).permute(0, 3, 1, 2) / 255).requires_grad_()
    scores = ensemble.score_tensor(PROMPTS[:2], pixels)
    scores.sum().backward()
    assert scores.detach().numpy() == pytest.approx(ensemble.score(PROMPTS[:2], list(levels)).values, abs=1e-3)
    assert (pixels.grad != 0).any()
    with pytest.raises(UserError, match="a cannot be differentiated"):
        Ensemble([Part(Fixed("a", [1]))]).score_tensor(["p"], pixels[:1].detach())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scorer: toy", "must hold a list of parts"),
        ("- {weight: 2}", "must hold a list of parts"),
        ("- {scorer: toy-taste, wieght: 2}", "Unknown field 'wieght'; did you mean 'weight'"),
        ("- {scorer: toy-taste, weight: heavy}", "weight must be a number, not 'heavy'"),
        ("- {scorer: toy-taste, std: 0}", "a std above 0"),
        ("- {scorer: toy-tast}", "did you mean 'toy-taste'"),
        ("- [", "cannot be read"),
        ("[]", "at least one part"),
    ],
)
def test_descriptions_that_are_none_say_why(text, message, tmp_path) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        load_scorer(f"ensemble:{tmp_path / 'x.yaml'}")


def test_a_description_that_is_not_there_is_said() -> None:
    with pytest.raises(UserError, match="none at '/nowhere.yaml'. Write ensemble:FILE.yaml"):
        load_scorer("ensemble:/nowhere.yaml")
