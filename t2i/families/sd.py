"""Stable Diffusion 1.x and 2.x: one text encoder, a UNet, epsilon or v prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers
from peft import get_peft_model_state_dict
from torch import Tensor, nn

from palate.errors import UserError
from t2i.families.base import Conditioning, Frame


class StableDiffusion:
    """SD1.x (epsilon) and SD2.x (epsilon or v, as the checkpoint's scheduler says)."""

    name = "sd"
    lora_targets: Sequence[str] = ("to_q", "to_k", "to_v", "to_out.0")
    framed: Sequence[str] = ()
    longest_edge: int = 0
    max_sequence_length: int = 0

    def __init__(self, pipeline: StableDiffusionPipeline) -> None:
        self.pipeline = pipeline
        self.denoiser: nn.Module = pipeline.unet
        self.noise = DDPMScheduler.from_config(pipeline.scheduler.config)
        kind = self.noise.config.prediction_type
        if kind not in ("epsilon", "v_prediction"):
            raise UserError(f"Stable Diffusion predicts epsilon or v; this checkpoint's scheduler says '{kind}'.")
        self.resolution: int = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
        self.multiple: int = pipeline.vae_scale_factor * 2 ** (len(pipeline.unet.config.down_block_types) - 1)

    @classmethod
    def load(cls, path: str, revision: str | None = None) -> StableDiffusion:
        """Load a pipeline folder or hub repository in fp32, whatever precision it is stored in."""
        return cls(StableDiffusionPipeline.from_pretrained(path, revision=revision, dtype=torch.float32))

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        factor = self.pipeline.vae_scale_factor
        return self.pipeline.unet.config.in_channels, height // factor, width // factor

    def tokenize(self, prompts: Sequence[str], frames: Sequence[Frame]) -> Conditioning:
        tokenizer = self.pipeline.tokenizer
        encoded = tokenizer(
            list(prompts),
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        return {"input_ids": encoded.input_ids}

    def encode_text(self, tokens: Conditioning) -> Conditioning:
        return {"encoder_hidden_states": self.pipeline.text_encoder(tokens["input_ids"])[0]}

    def encode_image(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        vae = self.pipeline.vae
        posterior = vae.encode(pixels.to(vae.dtype)).latent_dist
        scale = vae.config.scaling_factor
        return posterior.mean.float() * scale, posterior.std.float() * scale

    def draw_timestep(self, generator: torch.Generator) -> Tensor:
        """Uniform over all training timesteps."""
        return torch.randint(self.noise.config.num_train_timesteps, (), generator=generator)

    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return self.noise.add_noise(latents, noise, t)

    def target(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return the noise, or for v prediction `alpha_t noise - sigma_t latents` (Salimans and Ho, 2202.00512)."""
        if self.noise.config.prediction_type == "epsilon":
            return noise
        return self.noise.get_velocity(latents, noise, t)

    def predict(self, denoiser: nn.Module, noisy: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        return denoiser(noisy, t, **conditioning, return_dict=False)[0]

    def save_full(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        with torch.device("meta"):
            unet = UNet2DConditionModel.from_config(self.pipeline.unet.config)
        unet.load_state_dict({name: tensor.cpu() for name, tensor in weights.items()}, assign=True)
        pipeline = StableDiffusionPipeline(
            **{**self.pipeline.components, "unet": unet},
            requires_safety_checker=self.pipeline.config.requires_safety_checker,
        )
        pipeline.save_pretrained(folder)

    def save_lora(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        unet = self.pipeline.unet
        adapter = get_peft_model_state_dict(unet, state_dict=dict(weights))
        StableDiffusionPipeline.save_lora_weights(
            folder,
            unet_lora_layers=convert_state_dict_to_diffusers(adapter),
            # Without it diffusers takes alpha = rank.
            unet_lora_adapter_metadata=unet.peft_config["default"].to_dict(),
        )
