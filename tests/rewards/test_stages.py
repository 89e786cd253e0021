"""Shared work: what several scorers have in common is decoded, resized and encoded once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from palate.errors import UserError
from rewards import ScoreBatch, load_scorer, score_images, score_matrix, score_together
from rewards.geometry import Geometry
from rewards.stages import StagedScorer
from tests.rewards.conftest import PROMPTS
from tests.rewards.counting import count
from tests.rewards.official import ARCHITECTURE


def _clip(published, convention: str = "cosine", **options):
    source = f"{ARCHITECTURE}:{published / 'HPS_v2_compressed.pt'}"
    return load_scorer(f"open_clip:{source}", convention=convention, name=convention, device="cpu", **options)


@pytest.fixture
def decodes(monkeypatch) -> list[int]:
    """Counts the pictures that are decoded."""
    import rewards.rows

    seen: list[int] = []
    real = rewards.rows.picture
    monkeypatch.setattr(rewards.rows, "picture", lambda image, *name: (seen.append(1), real(image, *name))[1])
    return seen


@pytest.fixture
def resizes(monkeypatch) -> list[Geometry]:
    """Notes the geometries that pictures are brought into."""
    seen: list[Geometry] = []
    real = Geometry.__call__
    monkeypatch.setattr(Geometry, "__call__", lambda self, shown: (seen.append(self), real(self, shown))[1])
    return seen


def test_two_formulas_of_one_model_encode_once(published, images, resizes) -> None:
    """Three scorers, of which two read the same vectors and the third (HPSv2's padding) has a geometry of its own: 5
    resizes for each geometry; 5 images and 4 prompts through the shared encoder, and as many through the other."""
    cosine, logits = _clip(published), _clip(published, "logits")
    hps = load_scorer("hpsv2", source=str(published), architecture=ARCHITECTURE, device="cpu")
    counts = [count(scorer) for scorer in (cosine, logits, hps)]
    prompts = [*PROMPTS, PROMPTS[0]]
    together = score_together([cosine, logits, hps], prompts, images)
    assert len(resizes) == 10 and len(set(resizes)) == 2
    assert counts[0].images + counts[1].images == 5 and counts[2].images == 5
    assert counts[0].texts + counts[1].texts == 4 and counts[2].texts == 4
    for batch, scorer in zip(together, (cosine, logits, hps), strict=True):
        assert batch.values == pytest.approx(scorer.score(prompts, images).values, abs=1e-5)
        assert batch.scorer == scorer.name


def test_files_are_decoded_once_for_all(published, images, decodes, tmp_path) -> None:
    paths = []
    for number, image in enumerate(images):
        image.save(tmp_path / f"{number}.png")
        paths.append(tmp_path / f"{number}.png")
    hps = load_scorer("hpsv2", source=str(published), architecture=ARCHITECTURE, device="cpu")
    score_together([_clip(published), hps], [*PROMPTS, PROMPTS[0]], paths)
    assert len(decodes) == 5


def test_scorers_of_any_kind_may_join(published, images) -> None:
    class Width:
        name, unit = "width", "px"

        def score(self, prompts, images) -> ScoreBatch:
            return ScoreBatch(np.array([float(i.width) for i in images]), self.name, self.unit, "", "")

    first, second = score_together([Width(), _clip(published)], PROMPTS, images[:4])
    assert first.values.tolist() == [24.0, 40.0, 17.0, 24.0]
    assert second.values == pytest.approx(_clip(published).score(PROMPTS, images[:4]).values, abs=1e-5)


def test_what_one_geometry_refuses_another_takes(published) -> None:
    """A strip cannot be cropped, and can be padded: alone or together, the same rows fail."""
    strip = Image.fromarray(np.random.default_rng(0).integers(0, 256, (3, 900, 3), dtype=np.uint8))
    hps = load_scorer("hpsv2", source=str(published), architecture=ARCHITECTURE, device="cpu")
    cropped, padded = score_together([_clip(published), hps], PROMPTS[:2], [strip, Image.new("RGB", (9, 9))])
    assert cropped.ok.tolist() == [False, True] and "900 x 3 pixels" in cropped.failures[0]
    assert padded.ok.all()


def test_layouts_by_name(published, images) -> None:
    """P + I encodings, not P * I, and the values of each pair."""
    scorer = _clip(published)
    counts = count(scorer)
    matrix = scorer.score_matrix(PROMPTS, images)
    assert matrix.values.shape == (4, 5)
    assert (counts.texts, counts.images) == (4, 5)
    for p, prompt in enumerate(PROMPTS):
        assert matrix.values[p] == pytest.approx(scorer.score_images(prompt, images).values, abs=1e-5)
    assert matrix.values == pytest.approx(score_matrix(scorer, PROMPTS, images).values, abs=1e-5)
    assert score_images(scorer, PROMPTS[1], images).values == pytest.approx(matrix.values[1], abs=1e-5)


def test_failures_of_a_matrix_name_prompt_and_image(published, images) -> None:
    matrix = _clip(published).score_matrix(["a", " "], [images[0], None])
    assert matrix.failures == {
        (0, 1): "There is no image.",
        (1, 0): "The prompt is empty.",
        (1, 1): "There is no image.",
    }
    assert np.isfinite(matrix.values).tolist() == [[True, False], [False, False]]


def test_lengths_are_never_guessed(published, images) -> None:
    scorer = _clip(published)
    with pytest.raises(UserError, match="1 prompts and 5 images. score_images takes one prompt"):
        scorer.score(PROMPTS[:1], images)
    with pytest.raises(UserError, match="score_images takes one prompt, a text; got list"):
        scorer.score_images(PROMPTS, images)
    with pytest.raises(UserError, match="score_matrix takes a list of prompts"):
        score_matrix(scorer, "a", images)
    with pytest.raises(UserError, match="list of prompts, one per image; got one string"):
        scorer.score_matrix("a", images)


def test_nothing_to_score(published) -> None:
    scorer = _clip(published)
    assert [len(batch) for batch in score_together([scorer, load_scorer("toy-taste")], [], [])] == [0, 0]
    assert scorer.score_matrix(["a"], []).values.shape == (1, 0)
    assert scorer.score_matrix([], [None]).values.shape == (0, 1)


def test_a_scorer_without_gradients_says_so() -> None:
    assert isinstance(load_scorer("toy-taste"), StagedScorer)
    with pytest.raises(UserError, match="toy-taste cannot be differentiated"):
        load_scorer("toy-taste").score_tensor(["a"], torch.zeros(1, 3, 8, 8))
