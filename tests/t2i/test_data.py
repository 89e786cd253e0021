"""What both images of a pair share, and that every draw is a function of the pair and the visit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from palate.errors import UserError
from palate.objectives import Term
from palate.records import Media, Pair
from t2i.batches import collate
from t2i.data import Examples, ImageConfig, RecordList, cut, side_of
from t2i.families.sd import StableDiffusion
from t2i.families.sd3 import StableDiffusion3
from t2i.method import PreferenceMethod
from t2i.settings import ModelConfig
from tests.t2i.test_method import loss_of
from tests.t2i.tiny_pipelines import tiny_sd3
from tests.tiny import noise_image, noise_pairs

WILD = ImageConfig(crop="random", flip=True, caption_dropout=0.5)


def examples_of(pairs: list[Pair], family: StableDiffusion, config: ImageConfig = WILD, **how: bool) -> Examples:
    """Return the examples of pairs under seed 3."""
    return Examples(RecordList(pairs), family, config, seed=3, dual=how.get("dual", False))


def test_both_images_get_the_same_crop_and_flip(family: StableDiffusion) -> None:
    """The same picture on both sides stays the same picture, and over 40 visits it is cut in many ways."""
    picture = Media.image(noise_image(0, (40, 24)))
    twin = Pair("a red circle", picture, Media.image(noise_image(0, (40, 24)).convert("RGBA")))
    examples = examples_of([twin], family)
    seen = set()
    for visit in range(40):
        chosen, rejected = examples[0, visit].pixels
        assert torch.equal(chosen, rejected)
        seen.add(chosen.numpy().tobytes())
    assert len(seen) > 15


def test_a_flip_mirrors_and_happens_half_of_the_time(family: StableDiffusion) -> None:
    pair = noise_pairs(1)[0]
    plain = examples_of([pair], family, ImageConfig())[0, 0].pixels
    examples = examples_of([pair], family, ImageConfig(flip=True))
    flips = 0
    for visit in range(200):
        pixels = examples[0, visit].pixels
        mirrored = torch.equal(pixels, plain.flip(-1))
        assert mirrored or torch.equal(pixels, plain)
        flips += mirrored
    assert 70 < flips < 130  # 100 +- 4 standard deviations of 7.1


def test_swapping_a_pair_keeps_its_draws(family: StableDiffusion) -> None:
    """Chosen and rejected change places with everything that is theirs; what they share stays."""
    pairs = [
        replace(p, prompt_chosen="a red circle", prompt_rejected="a blue square") for p in noise_pairs(4, (20, 32))
    ]
    there, back = (
        examples_of(side, family, replace(WILD, caption_dropout=0.0), dual=True)
        for side in (pairs, [pair.swap() for pair in pairs])
    )
    for index in range(4):
        for visit in range(5):
            one, two = there[index, visit], back[index, visit]
            assert one.timestep == two.timestep and torch.equal(one.noise, two.noise)
            assert torch.equal(one.pixels, two.pixels.flip(0)) and torch.equal(one.vae_noise, two.vae_noise.flip(0))
            assert one.captions == two.captions[::-1] == ("a red circle", "a blue square")


def test_draws_depend_on_pair_visit_and_seed_only(family: StableDiffusion) -> None:
    pairs = noise_pairs(3)
    here = examples_of(pairs, family)
    shuffled = examples_of([pairs[2], pairs[0]], family)
    assert torch.equal(here[0, 4].noise, shuffled[1, 4].noise) and here[0, 4].timestep == shuffled[1, 4].timestep
    other_seed = Examples(RecordList(pairs), family, WILD, seed=4, dual=False)
    noises = [here[0, 0].noise, here[0, 1].noise, here[1, 0].noise, other_seed[0, 0].noise, here[0, "held-out 0"].noise]
    assert all(not torch.equal(a, b) for i, a in enumerate(noises) for b in noises[:i])


def test_timesteps_cover_the_schedule(family: StableDiffusion) -> None:
    """Uniform over 0..999: of 400 draws the mean lies within 4 standard errors (14.4 each) of 499.5."""
    examples = examples_of(noise_pairs(1), family)
    drawn = torch.stack([examples[0, visit].timestep for visit in range(400)]).float()
    assert abs(float(drawn.mean()) - 499.5) < 58 and drawn.min() < 20 and drawn.max() > 980


def test_winner_and_loser_are_noised_alike(family: StableDiffusion) -> None:
    """x_t = sqrt(abar) x_0 + sqrt(1 - abar) noise with one t and one noise: solving for the noise gives it back twice."""
    method = PreferenceMethod(family, loss_of(Term("dpo")), ModelConfig(), "fp32")
    examples = examples_of(noise_pairs(3), family)
    batch = method.collate([examples[index, 0] for index in range(3)])
    inputs = method._inputs(batch)
    assert torch.equal(inputs.t[:3], batch.timestep) and torch.equal(inputs.t[3:], batch.timestep)
    mean, std = family.encode_image(batch.pixels)
    x0 = mean + std * batch.vae_noise
    assert not torch.equal(x0[:3], x0[3:])
    abar = family.noise.alphas_cumprod[inputs.t].view(-1, 1, 1, 1)
    found = (inputs.noisy - abar.sqrt() * x0) / (1 - abar).sqrt()
    for side in found.chunk(2):
        torch.testing.assert_close(side, batch.noise, rtol=1e-3, atol=1e-3)


def test_caption_dropout_takes_both_captions_at_its_rate(family: StableDiffusion) -> None:
    """200 visits at .25: 50 expected, standard deviation 6.1; a dropped pair loses both captions."""
    pair = replace(noise_pairs(1)[0], prompt_chosen="a red circle", prompt_rejected="a blue square")
    examples = examples_of([pair], family, ImageConfig(caption_dropout=0.25), dual=True)
    captions = [examples[0, visit].captions for visit in range(200)]
    assert set(captions) == {("", ""), ("a red circle", "a blue square")}
    assert 26 <= captions.count(("", "")) <= 74
    none, all_ = (examples_of([pair], family, ImageConfig(caption_dropout=rate)) for rate in (0.0, 1.0))
    assert all(none[0, v].captions != ("", "") and all_[0, v].captions == ("", "") for v in range(20))


def test_dual_captions_condition_each_branch_on_its_own(family: StableDiffusion) -> None:
    """DCPO: the first B rows of the conditioning are the text encoder's for prompt_chosen, the others for the other.

    A row without its own captions falls back on the prompt; shared captions ignore both.
    """
    pairs = noise_pairs(2)
    pairs[0] = replace(pairs[0], prompt_chosen="a blue circle", prompt_rejected="a green triangle")
    wanted = {
        True: ["a blue circle", pairs[1].prompt, "a green triangle", pairs[1].prompt],
        False: [pairs[0].prompt, pairs[1].prompt] * 2,
    }
    method = PreferenceMethod(family, loss_of(Term("dpo")), ModelConfig(), "fp32")
    for dual, captions in wanted.items():
        examples = examples_of(pairs, family, ImageConfig(), dual=dual)
        inputs = method._inputs(method.collate([examples[0, 0], examples[1, 0]]))
        ids = family.pipeline.tokenizer(captions, padding="max_length", return_tensors="pt").input_ids
        with torch.no_grad():
            expected = family.pipeline.text_encoder(ids)[0]
        torch.testing.assert_close(inputs.conditioning["encoder_hidden_states"], expected)


def test_pixels_by_hand() -> None:
    """A 4 x 2 picture at side 2: the centre leaves columns 1 and 2; 0 -> -1, 255 -> 1, 51 -> -.6."""
    values = np.zeros((2, 4, 3), dtype=np.uint8)
    values[:, 1], values[:, 2], values[:, 3] = 255, 51, 102
    picture = Image.fromarray(values)
    centre, left, right = (cut(picture, (2, 2), across).pixels[0, 0] for across in (0.5, 0.0, 1.0))
    torch.testing.assert_close(centre, torch.tensor([1.0, -0.6]))
    torch.testing.assert_close(left, torch.tensor([-1.0, 1.0]))
    torch.testing.assert_close(right, torch.tensor([-0.6, -0.2]))


@pytest.mark.parametrize("size", [(16, 16), (64, 20), (17, 90), (5, 7)])
def test_every_size_becomes_the_square(size: tuple[int, int]) -> None:
    pixels = cut(noise_image(0, size), (16, 16), 1.0, 1.0).pixels
    assert pixels.shape == (3, 16, 16) and pixels.min() >= -1 and pixels.max() <= 1


def test_a_batch_holds_all_chosen_first(family: StableDiffusion) -> None:
    pairs = [replace(p, p_chosen=0.75, score_gap=gap) for p, gap in zip(noise_pairs(3), (1.0, None, 2.0), strict=True)]
    examples = examples_of(pairs, family, ImageConfig())
    batch = collate([examples[index, 0] for index in range(3)], family)
    assert batch.pixels.shape == (6, 3, 16, 16) and batch.noise.shape == (3, 4, 8, 8)
    for index in range(3):
        chosen, rejected = (cut(m.decode(), (16, 16)).pixels for m in (pairs[index].chosen, pairs[index].rejected))
        assert torch.equal(batch.pixels[index], chosen) and torch.equal(batch.pixels[3 + index], rejected)
    assert batch.p_chosen.tolist() == [0.75] * 3
    assert batch.score_gap.isnan().tolist() == [False, True, False]


def test_a_recipe_can_ask_for_another_resolution(family: StableDiffusion, tmp_path: Path) -> None:
    examples = examples_of(noise_pairs(1), family, ImageConfig(resolution=24))
    assert examples[0, 0].pixels.shape == (2, 3, 24, 24) and examples[0, 0].noise.shape == (4, 12, 12)


def test_a_side_that_the_model_cannot_take_is_refused(family: StableDiffusion) -> None:
    """Tiny SD halves twice; tiny SD3 has places for 16 x 16 latents of 2 x 2 pixels."""
    assert family.multiple == 4
    with pytest.raises(UserError, match=r"resolution 22: sd takes multiples of 4 pixels, such as 20 or 24"):
        side_of(ImageConfig(resolution=22), family)
    with pytest.raises(UserError, match=r"resolution 3: sd takes multiples of 4 pixels, such as 4\."):
        side_of(ImageConfig(resolution=3), family)
    sd3 = StableDiffusion3(tiny_sd3())
    assert side_of(ImageConfig(), sd3) == 16 and side_of(ImageConfig(resolution=32), sd3) == 32
    with pytest.raises(UserError, match="resolution 34: this sd3 has places for 32 pixels"):
        side_of(ImageConfig(resolution=34), sd3)
