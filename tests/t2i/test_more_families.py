"""SDXL, SD3, FLUX.1 and Sana against diffusers' own pipelines, and folders that load without palate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from palate.errors import UserError
from t2i.families import load_family, with_length
from t2i.families.base import Family, Frame
from t2i.families.flux import Flux, pack, positions, unpack
from t2i.families.sana import Sana
from t2i.families.sd3 import StableDiffusion3
from t2i.families.sdxl import StableDiffusionXL
from t2i.sample import load_pipeline
from tests.t2i.runs import checkpoint_state, run_in_process
from tests.t2i.tiny_pipelines import TINY, tiny_flux, tiny_sana, tiny_sd3, tiny_sdxl
from tests.tiny import PROMPTS

CLASSES: dict[str, Any] = {"sdxl": StableDiffusionXL, "sd3": StableDiffusion3, "flux": Flux, "sana": Sana}
SIDE = 16
FRAMES = [Frame((64, 48), (3, 0), (SIDE, SIDE)), Frame((20, 30), (0, 4), (SIDE, SIDE))]
SAID = list(PROMPTS[:2])
LENGTHS: list[dict[str, int]] = [{}, {"max_sequence_length": 20}]
"""The pipeline's own length of the long text, and another."""


@pytest.fixture(scope="module", params=list(TINY))
def family(request: pytest.FixtureRequest) -> Family:
    """A tiny family of each kind."""
    return CLASSES[request.param](TINY[request.param]())


@pytest.fixture(scope="module", params=list(TINY))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline of each kind on disk."""
    folder = tmp_path_factory.mktemp("tiny") / request.param
    TINY[request.param]().save_pretrained(folder)
    return folder


@torch.no_grad()
def encoded(family: Family, prompts: list[str] = SAID) -> dict[str, Tensor]:
    return family.encode_text(family.tokenize(prompts, FRAMES[: len(prompts)]))


@torch.no_grad()
def test_sdxl_conditioning_equals_the_pipeline_s() -> None:
    """time_ids are (original height, width, top, left, height, width), as in 2307.01952, section 2.2."""
    pipeline = tiny_sdxl()
    states, _, pooled, _ = pipeline.encode_prompt(SAID, do_classifier_free_guidance=False)
    mine = encoded(StableDiffusionXL(pipeline))
    torch.testing.assert_close(mine["encoder_hidden_states"], states)
    torch.testing.assert_close(mine["text_embeds"], pooled)
    assert mine["time_ids"].tolist() == [[64, 48, 3, 0, 16, 16], [20, 30, 0, 4, 16, 16]]


@pytest.mark.parametrize("zeros", [True, False])
@torch.no_grad()
def test_an_empty_caption_is_what_sdxl_samples_its_unconditional_branch_with(zeros: bool) -> None:
    pipeline = tiny_sdxl(zeros=zeros)
    said, unsaid, pooled, unpooled = pipeline.encode_prompt(SAID[:1], do_classifier_free_guidance=True)
    mine = encoded(StableDiffusionXL(pipeline), [SAID[0], ""])
    torch.testing.assert_close(mine["encoder_hidden_states"], torch.cat([said, unsaid]))
    torch.testing.assert_close(mine["text_embeds"], torch.cat([pooled, unpooled]))
    assert bool((unsaid == 0).all()) == zeros


@pytest.mark.parametrize("own", LENGTHS)
@pytest.mark.parametrize("t5", [True, False])
@torch.no_grad()
def test_sd3_conditioning_equals_the_pipeline_s(t5: bool, own: dict[str, int]) -> None:
    pipeline = tiny_sd3(t5=t5)
    states, _, pooled, _ = pipeline.encode_prompt(SAID, SAID, SAID, do_classifier_free_guidance=False, **own)
    mine = encoded(with_length(StableDiffusion3(pipeline), **own))
    torch.testing.assert_close(mine["encoder_hidden_states"], states)
    torch.testing.assert_close(mine["pooled_projections"], pooled)


@torch.no_grad()
def test_an_sd3_that_was_saved_without_t5_loads(tmp_path: Path) -> None:
    """diffusers must be told of parts that are missing; the family and sampling are loaded as any other."""
    kept = encoded(StableDiffusion3(tiny_sd3(t5=False)))
    tiny_sd3(t5=False).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="text_encoder_3"):
        DiffusionPipeline.from_pretrained(tmp_path)
    for name, tensor in encoded(load_family(str(tmp_path))).items():
        torch.testing.assert_close(tensor, kept[name])
    assert load_pipeline(str(tmp_path), device="cpu").text_encoder_3 is None


@pytest.mark.parametrize("own", LENGTHS)
@torch.no_grad()
def test_flux_conditioning_equals_the_pipeline_s(own: dict[str, int]) -> None:
    pipeline = tiny_flux()
    states, pooled, _ = pipeline.encode_prompt(SAID, SAID, **own)
    mine = encoded(with_length(Flux(pipeline), **own))
    torch.testing.assert_close(mine["encoder_hidden_states"], states)
    torch.testing.assert_close(mine["pooled_projections"], pooled)


@pytest.mark.parametrize("own", LENGTHS)
@torch.no_grad()
def test_sana_conditioning_equals_the_pipeline_s(own: dict[str, int]) -> None:
    """The prompt's branch carries the instruction, the unconditional one does not; padding is masked out."""
    from inspect import signature

    pipeline = tiny_sana()
    instruction = signature(pipeline.__call__).parameters["complex_human_instruction"].default
    said, mask, unsaid, unmask = pipeline.encode_prompt(SAID[:1], True, complex_human_instruction=instruction, **own)
    mine = encoded(with_length(Sana(pipeline), **own), [SAID[0], ""])
    assert torch.equal(mine["encoder_attention_mask"], torch.cat([mask, unmask]))
    torch.testing.assert_close(mine["encoder_hidden_states"][0], said[0])
    kept = unmask[0].bool()
    assert int(kept.sum()) >= 1
    torch.testing.assert_close(mine["encoder_hidden_states"][1, kept], unsaid[0, kept])


def test_a_length_is_refused_where_there_is_no_long_text() -> None:
    with pytest.raises(UserError, match="which sdxl has not"):
        with_length(StableDiffusionXL(tiny_sdxl()), 77)
    with pytest.raises(UserError, match="600: the pipelines draw with at most 512"):
        with_length(StableDiffusion3(tiny_sd3()), 600)


@torch.no_grad()
def test_latents_have_the_mean_zero_scale_that_the_denoiser_was_made_for(family: Family) -> None:
    """(mode - shift) * scale, as each pipeline undoes it before decoding: latents / scale + shift."""
    vae = family.pipeline.vae
    pixels = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, std = family.encode_image(pixels)
    assert mean.shape[1:] == std.shape[1:] == family.latent_shape(SIDE, SIDE)
    undone = mean / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0.0)
    encoding = vae.encode(pixels)
    raw = encoding.latent if family.name == "sana" else encoding.latent_dist.mode()
    torch.testing.assert_close(undone, raw)
    if family.name == "sana":
        assert not std.any()
    else:
        torch.testing.assert_close(std, encoding.latent_dist.std * vae.config.scaling_factor)


@pytest.mark.parametrize("name", ["sd3", "flux", "sana"])
def test_noise_and_target_of_flow_families(name: str) -> None:
    """diffusers' flow scheduler puts the same noise in; one whole Euler step along the target gives the image back."""
    family = CLASSES[name](TINY[name]())
    torch.manual_seed(0)
    shape = (3, *family.latent_shape(SIDE, SIDE))
    x0, noise = torch.randn(shape), torch.randn(shape)
    scheduler = FlowMatchEulerDiscreteScheduler()
    t = scheduler.timesteps[[5, 400, 990]]
    noisy = family.add_noise(x0, noise, t)
    torch.testing.assert_close(noisy, scheduler.scale_noise(x0, t, noise))
    sigma = (t / 1000).view(-1, 1, 1, 1)
    torch.testing.assert_close(noisy - sigma * family.target(x0, noise, t), x0, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "shift"), [("sd3", 3.0), ("flux", 1.0), ("sana", 3.0)])
def test_timesteps_are_logit_normal_and_shifted(name: str, shift: float) -> None:
    """Quantiles of 1000 s u / (1 + (s - 1) u), u = sigmoid(N(0, 1)): with s = 3 the median is 1000 * 1.5 / 2 = 750."""
    family = CLASSES[name](TINY[name]())
    found = torch.stack([family.draw_timestep(torch.Generator().manual_seed(k)) for k in range(2000)])
    level = torch.tensor([0.1, 0.5, 0.9])
    u = torch.distributions.Normal(0.0, 1.0).icdf(level).sigmoid()
    torch.testing.assert_close(found.quantile(level), 1000 * shift * u / (1 + (shift - 1) * u), rtol=0.04, atol=0)
    assert found.shape == (2000,) and bool(((found > 0) & (found < 1000)).all())


def test_flux_packs_two_by_two_squares_channel_by_channel() -> None:
    """2 channels of 2 x 4: the first token is [c0: 0 1 4 5 | c1: 8 9 12 13]."""
    latents = torch.arange(16.0).view(1, 2, 2, 4)
    assert pack(latents)[0, 0].tolist() == [0, 1, 4, 5, 8, 9, 12, 13]
    assert torch.equal(unpack(pack(latents), 2, 4), latents)
    assert positions(2, 3).tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0], [0, 1, 1], [0, 1, 2]]


@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux"])  # Sana's pipeline draws only at its own, large sizes
@torch.no_grad()
def test_the_prediction_is_the_one_that_the_pipeline_steps_along(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the pipeline asks its denoiser while it samples, and what it hears, equals `predict` on the same latents."""
    family = CLASSES[name](TINY[name]())
    heard: list[tuple[tuple[Any, ...], dict[str, Any], Tensor]] = []
    plain = family.denoiser.forward

    def listen(*args: Any, **kwargs: Any) -> Any:
        output = plain(*args, **kwargs)
        heard.append((args, kwargs, output[0]))
        return output

    monkeypatch.setattr(family.denoiser, "forward", listen)
    start = torch.randn(1, *family.latent_shape(SIDE, SIDE), generator=torch.Generator().manual_seed(1))
    family.pipeline.set_progress_bar_config(disable=True)
    family.pipeline(
        SAID[0],
        latents=pack(start) if family.name == "flux" else start,
        num_inference_steps=1,
        guidance_scale=3.5 if family.name == "flux" else 1.0,
        height=SIDE,
        width=SIDE,
        output_type="latent",
    )
    monkeypatch.undo()
    args, kwargs, answer = heard[0]
    noisy = args[0] if args else kwargs["hidden_states"]
    t = args[1] if len(args) > 1 else kwargs["timestep"]
    t = torch.as_tensor(t).reshape(1) * (1000 if family.name == "flux" else 1)
    if family.name == "flux":
        noisy, answer = (unpack(x, *start.shape[-2:]) for x in (noisy, answer))
    frame = Frame((SIDE, SIDE), (0, 0), (SIDE, SIDE))
    mine = family.predict(family.denoiser, noisy, t, family.encode_text(family.tokenize(SAID[:1], [frame])))
    torch.testing.assert_close(mine, answer)


def ask(family: Family) -> Tensor:
    """Return a prediction on fixed inputs."""
    torch.manual_seed(0)
    noisy = torch.randn(2, *family.latent_shape(SIDE, SIDE))
    with torch.no_grad():
        return family.predict(family.denoiser, noisy, torch.tensor([300.0, 700.0]).long().float(), encoded(family))


def test_a_full_model_loads_in_its_diffusers_pipeline(folder: Path, pairs: Path, tmp_path: Path) -> None:
    settings = {"model.path": str(folder), "data.path": str(pairs), "out": str(tmp_path / "run"), "train.steps": 2}
    run_in_process({**settings, "data.image.resolution": SIDE, "optim.lr": 1e-3})
    trained = DiffusionPipeline.from_pretrained(tmp_path / "run" / "model", dtype=torch.float32)
    family = load_family(str(folder))
    assert type(trained) is type(family.pipeline)
    state = checkpoint_state(tmp_path / "run" / "checkpoints" / "step-00000002", tmp_path / "state.pt")
    weights = {n.removeprefix("model.policy."): w for n, w in state.items() if n.startswith("model.policy.")}
    before = ask(family)
    family.denoiser.load_state_dict(weights, strict=False)
    expected = ask(family)
    assert float((expected - before).abs().max()) > 1e-4
    torch.testing.assert_close(ask(CLASSES[folder.name](trained)), expected)


def test_an_adapter_loads_by_load_lora_weights(folder: Path, pairs: Path, tmp_path: Path) -> None:
    """W + (alpha / rank) B A = W + 2 B A on every target, added up by hand from the checkpoint's tensors."""
    lora = {"model.tuning": "lora", "model.lora_rank": 2, "model.lora_alpha": 4.0, "optim.lr": 3e-2, "train.steps": 3}
    settings = {"model.path": str(folder), "data.path": str(pairs), "out": str(tmp_path / "run"), **lora}
    run_in_process({**settings, "data.image.resolution": SIDE, "checkpoint.every": 3})
    by_hand = load_family(str(folder))
    before = ask(by_hand)
    state = checkpoint_state(tmp_path / "run" / "checkpoints" / "step-00000003", tmp_path / "state.pt")
    downs = {name: value for name, value in state.items() if name.startswith("model.") and "lora_A" in name}
    assert downs
    with torch.no_grad():
        for name, down in downs.items():
            place = name.removeprefix("model.policy.").split(".lora_A")[0]
            by_hand.denoiser.get_submodule(place).weight += 2.0 * state[name.replace("lora_A", "lora_B")] @ down
    expected = ask(by_hand)
    assert float((expected - before).abs().max()) > 1e-4
    pipeline = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.load_lora_weights(tmp_path / "run" / "model")
    torch.testing.assert_close(ask(CLASSES[folder.name](pipeline)), expected, rtol=1e-4, atol=1e-5)


def test_sdxl_noise_and_target_equal_the_training_scheduler_s() -> None:
    family = StableDiffusionXL(tiny_sdxl())
    torch.manual_seed(0)
    x0, noise, t = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), torch.tensor([0, 500, 999])
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000).square()
    abar = (1 - betas).cumprod(0)[t].view(-1, 1, 1, 1)
    torch.testing.assert_close(family.add_noise(x0, noise, t), abar.sqrt() * x0 + (1 - abar).sqrt() * noise)
    assert torch.equal(family.target(x0, noise, t), noise)
