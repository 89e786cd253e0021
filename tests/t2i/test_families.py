"""The Stable Diffusion family against diffusers used on its own, and folders that load without palate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file

from apps import merge
from palate.errors import UserError
from t2i.families import load_family
from t2i.families.sd import StableDiffusion
from t2i.sample import load_pipeline
from tests.t2i.runs import assert_same, checkpoint_state, denoiser_weights, rows, run_in_process
from tests.tiny import PROMPTS, noise_image, save_tiny_sd, tiny_sd


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_noise_and_target_equal_the_scheduler_s(prediction: str) -> None:
    family = StableDiffusion(tiny_sd(prediction=prediction))
    scheduler = DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type=prediction
    )
    torch.manual_seed(0)
    x0, noise, t = torch.randn(5, 4, 8, 8), torch.randn(5, 4, 8, 8), torch.tensor([0, 1, 250, 600, 999])
    assert torch.equal(family.add_noise(x0, noise, t), scheduler.add_noise(x0, noise, t))
    abar = scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
    by_hand = noise if prediction == "epsilon" else abar.sqrt() * noise - (1 - abar).sqrt() * x0
    torch.testing.assert_close(family.target(x0, noise, t), by_hand)


def test_a_perfect_v_prediction_gives_back_the_image() -> None:
    """x_0 = sqrt(abar) x_t - sqrt(1 - abar) v."""
    family = StableDiffusion(tiny_sd(prediction="v_prediction"))
    torch.manual_seed(0)
    x0, noise, t = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), torch.tensor([10, 500, 990])
    abar = family.noise.alphas_cumprod[t].view(-1, 1, 1, 1)
    found = abar.sqrt() * family.add_noise(x0, noise, t) - (1 - abar).sqrt() * family.target(x0, noise, t)
    torch.testing.assert_close(found, x0, rtol=1e-4, atol=1e-5)


def test_conditioning_and_latents_equal_the_pipeline_s(family: StableDiffusion) -> None:
    pipeline = tiny_sd()
    embeddings, _ = pipeline.encode_prompt(list(PROMPTS), "cpu", 1, do_classifier_free_guidance=False)
    mine = family.encode_text(family.tokenize(PROMPTS, []))["encoder_hidden_states"]
    torch.testing.assert_close(mine, embeddings)
    pixels = pipeline.image_processor.preprocess([noise_image(0), noise_image(1)])
    posterior = pipeline.vae.encode(pixels).latent_dist
    mean, std = family.encode_image(pixels)
    torch.testing.assert_close(mean, posterior.mean * 0.18215)
    torch.testing.assert_close(std, posterior.std * 0.18215)
    assert family.latent_shape(32, 16) == (4, 16, 8) and family.resolution == 16


def test_long_prompts_are_cut_before_the_end_token(family: StableDiffusion) -> None:
    ids = family.tokenize(["a red circle " * 50], [])["input_ids"]
    tokenizer = family.pipeline.tokenizer
    assert ids.shape == (1, tokenizer.model_max_length) and int(ids[0, -1]) == tokenizer.eos_token_id


def test_other_predictions_are_refused() -> None:
    with pytest.raises(UserError, match="epsilon or v; this checkpoint's scheduler says 'sample'"):
        StableDiffusion(tiny_sd(prediction="sample"))


def test_a_full_model_loads_without_palate_and_holds_the_trained_weights(
    model: Path, pairs: Path, tmp_path: Path
) -> None:
    run_in_process({"model.path": str(model), "data.path": str(pairs), "out": str(tmp_path / "run"), "train.steps": 2})
    trained = tmp_path / "run" / "model"
    pipeline = StableDiffusionPipeline.from_pretrained(trained)
    state = checkpoint_state(tmp_path / "run" / "checkpoints" / "step-00000002", tmp_path / "state.pt")
    assert_same(
        pipeline.unet.state_dict(),
        {n.removeprefix("model.policy."): v for n, v in state.items() if "model.policy" in n},
    )
    before = StableDiffusionPipeline.from_pretrained(model)
    assert_same(pipeline.vae.state_dict(), before.vae.state_dict())
    assert_same(pipeline.text_encoder.state_dict(), before.text_encoder.state_dict())
    assert not torch.equal(pipeline.unet.conv_out.weight, before.unet.conv_out.weight)
    assert pipeline.scheduler.config == before.scheduler.config
    checkpointed = denoiser_weights(tmp_path / "run" / "checkpoints" / "step-00000002" / "model")
    assert_same(checkpointed, denoiser_weights(trained))


def test_an_adapter_loads_without_palate_and_merges_into_the_same_model(
    model: Path, pairs: Path, tmp_path: Path
) -> None:
    """Base + adapter by load_lora_weights, by palate and merged: one prediction, which is the trained policy's.

    The policy's is W + (alpha / rank) B A on every target, added up by hand from the saved tensors (alpha 8, rank 4).
    """
    lora = {"model.tuning": "lora", "model.lora_rank": 4, "model.lora_alpha": 8.0, "optim.lr": 1e-2}
    run_in_process({"model.path": str(model), "data.path": str(pairs), "out": str(tmp_path / "run"), **lora})
    adapter = tmp_path / "run" / "model"
    merge.main(["--adapter", str(tmp_path / "run"), "--out", str(tmp_path / "merged")])

    torch.manual_seed(0)
    x, t, text = torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), torch.randn(2, 6, 16)

    def predict(pipeline: StableDiffusionPipeline) -> torch.Tensor:
        with torch.no_grad():
            return pipeline.unet(x, t, text).sample

    by_diffusers = StableDiffusionPipeline.from_pretrained(model)
    bare = predict(by_diffusers)
    by_diffusers.load_lora_weights(adapter)
    by_hand = StableDiffusionPipeline.from_pretrained(model)
    state = checkpoint_state(tmp_path / "run" / "checkpoints" / "step-00000004", tmp_path / "state.pt")
    downs = {name: value for name, value in state.items() if name.startswith("model.") and "lora_A" in name}
    assert downs
    with torch.no_grad():
        for name, down in downs.items():
            place = name.removeprefix("model.policy.").split(".lora_A")[0]
            up = state[name.replace("lora_A", "lora_B")]
            by_hand.unet.get_submodule(place).weight += 2.0 * up @ down
    expected = predict(by_hand)
    assert float((expected - bare).abs().max()) > 1e-2
    for pipeline in (by_diffusers, load_pipeline(str(adapter), device="cpu"), load_pipeline(str(tmp_path / "merged"))):
        torch.testing.assert_close(predict(pipeline), expected, rtol=1e-4, atol=1e-5)
    assert not [
        n for n in load_file(tmp_path / "merged" / "unet" / "diffusion_pytorch_model.safetensors") if "lora" in n
    ]
    with pytest.raises(UserError, match="exists already"):
        merge.main(["--adapter", str(adapter), "--out", str(tmp_path / "merged")])
    with pytest.raises(UserError, match="holds no LoRA adapter"):
        merge.main(["--adapter", str(model), "--out", str(tmp_path / "again")])


def test_weights_stored_in_fp16_are_trained_in_fp32(pairs: Path, tmp_path: Path) -> None:
    """A step of 1e-6 is below the spacing of fp16 around 1: in fp16 the norm weights would stay at 1.0 exactly."""
    tiny_sd().to(dtype=torch.float16).save_pretrained(tmp_path / "half")
    stored = denoiser_weights(tmp_path / "half")
    assert {w.dtype for w in stored.values()} == {torch.float16}
    settings = {"model.path": str(tmp_path / "half"), "data.path": str(pairs), "out": str(tmp_path / "run")}
    run_in_process({**settings, "train.steps": 1, "optim.lr": 1e-6})
    trained = denoiser_weights(tmp_path / "run" / "model")
    assert {w.dtype for w in trained.values()} == {torch.float32}
    moved = (trained["conv_norm_out.weight"] - 1.0).abs()
    assert 0 < float(moved.max()) < 1e-5
    assert rows(tmp_path / "run", "train")[0]["loss"] == pytest.approx(0.693147, abs=1e-6)


def test_bf16_training_leaves_the_frozen_parts_as_they_were(model: Path, pairs: Path, tmp_path: Path) -> None:
    """The VAE and text encoder run in bf16, but nobody trained them: the saved pipeline has the original ones."""
    settings = {"model.path": str(model), "data.path": str(pairs), "out": str(tmp_path / "run"), "train.steps": 1}
    run_in_process({**settings, "train.precision": "bf16"})
    for part in ("vae/diffusion_pytorch_model", "text_encoder/model"):
        assert_same(
            load_file(tmp_path / "run" / "model" / f"{part}.safetensors"), load_file(model / f"{part}.safetensors")
        )


def test_load_family_reads_the_class_in_the_index(tmp_path: Path) -> None:
    folder = save_tiny_sd(tmp_path / "sd", prediction="v_prediction")
    loaded = load_family(str(folder))
    assert loaded.name == "sd" and loaded.noise.config.prediction_type == "v_prediction"  # type: ignore[attr-defined]
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": "PixArtAlphaPipeline"}))
    with pytest.raises(
        UserError, match="No family for the pipeline class 'PixArtAlphaPipeline'.*StableDiffusionPipeline"
    ):
        load_family(str(folder))
