"""LAION's aesthetic predictors on random heads in the official formats, against the layers one after the other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from palate.errors import UserError
from rewards import load_scorer
from rewards.aesthetic import collapse
from tests.rewards.conftest import PROMPTS
from tests.rewards.counting import count
from tests.rewards.official import ARCHITECTURE, head_layers
from tests.rewards.test_clip_scorers import _crop, _open_clip


@pytest.fixture(scope="module")
def load(published):
    clip = f"{ARCHITECTURE}:{published / 'HPS_v2_compressed.pt'}"
    return lambda version, **how: load_scorer(
        version, **{"source": str(published), "clip": clip, "device": "cpu", **how}
    )


@torch.no_grad()
def _vectors(published, images) -> torch.Tensor:
    """Return unit vectors as OpenAI's transform and simple_inference.py's `normalized` give them."""
    model = _open_clip(published)
    found = torch.cat([model.encode_image(_crop(image, 24, lambda rest: round(rest / 2))) for image in images])
    return found / found.norm(dim=-1, keepdim=True)


def test_v2_is_its_five_layers(load, published, images) -> None:
    state = torch.load(published / "sac+logos+ava1-l14-linearMSE.pth", weights_only=True)
    x = _vectors(published, images)
    for number in (0, 2, 4, 6, 7):
        x = x @ state[f"layers.{number}.weight"].T + state[f"layers.{number}.bias"]
    batch = load("aesthetic-v2").score(["", *PROMPTS], images)
    assert batch.values == pytest.approx(x[:, 0].numpy(), abs=1e-4)
    assert np.ptp(batch.values) > 1e-3
    assert (batch.scorer, batch.unit, batch.failures) == ("aesthetic-v2", "rating", {})


def test_v1_is_one_layer(load, published, images) -> None:
    state = torch.load(published / "sa_0_4_vit_l_14_linear.pth", weights_only=True)
    golden = _vectors(published, images) @ state["weight"][0] + state["bias"]
    batch = load("aesthetic-v1").score([""] * 5, images)
    assert batch.values == pytest.approx(golden.numpy(), abs=1e-5)
    assert batch.scorer == "aesthetic-v1" and batch.weights != load("aesthetic-v2").weights


def test_layers_multiply_out() -> None:
    """(x -> 2x + 1) then (y -> 3y - 1) is 6x + 2."""
    layers = [(torch.tensor([[2.0]]), torch.tensor([1.0])), (torch.tensor([[3.0]]), torch.tensor([-1.0]))]
    found = collapse(layers)
    assert (found.weight.tolist(), found.bias) == ([6.0], 2.0)


def test_prompts_are_not_looked_at_nor_encoded(load, images) -> None:
    scorer = load("aesthetic-v2")
    counts = count(scorer)
    one, other = scorer.score(PROMPTS, images[:4]), scorer.score([""] * 4, images[:4])
    assert np.array_equal(one.values, other.values) and counts.texts == 0


def test_gradients_reach_the_pixels(load, images) -> None:
    scorer = load("aesthetic-v2")
    levels = np.stack([np.asarray(image.resize((30, 26))) for image in images[:2]])
    pixels = (torch.from_numpy(levels).permute(0, 3, 1, 2) / 255).requires_grad_()
    scores = scorer.score_tensor(["", ""], pixels)
    scores.sum().backward()
    assert scores.detach().numpy() == pytest.approx(scorer.score(["", ""], list(levels)).values, abs=1e-4)
    assert (pixels.grad.flatten(1).norm(dim=1) > 0).all()


def test_heads_that_do_not_fit_say_why(load, published, tmp_path) -> None:
    torch.save(head_layers(8, seed=1), tmp_path / "narrow.pth")
    with pytest.raises(UserError, match="rates vectors of 8 numbers; those of .* have 16"):
        load("aesthetic-v2", source=str(tmp_path / "narrow.pth"))
    state = head_layers(16, seed=1)
    del state["layers.4.bias"]
    torch.save(state, tmp_path / "short.pth")
    with pytest.raises(UserError, match=r"does not hold the five layers layers.0, 2, 4, 6, 7.*layers.4.bias"):
        load("aesthetic-v2", source=str(tmp_path / "short.pth"))
    with pytest.raises(UserError, match="is no head of version 1"):
        load("aesthetic-v1", source=str(tmp_path / "narrow.pth"))
    with pytest.raises(UserError, match="is on no hub. Download it"):
        load("aesthetic-v1", source=None)
    with pytest.raises(UserError, match="There is no file"):
        load("aesthetic-v2", source=str(tmp_path))


def test_vectors_are_given_out(load, images) -> None:
    found = load("aesthetic-v2").embed_images([images[0], None, Image.new("RGB", (5, 5))])
    assert torch.isnan(found[1]).all() and found[[0, 2]].norm(dim=1) == pytest.approx(torch.ones(2), abs=1e-6)
