"""Stable Diffusion XL: two text encoders, pooled text, and the size and crop of the image as conditioning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from diffusers import DDPMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers
from peft import get_peft_model_state_dict
from torch import Tensor, nn

from palate.errors import UserError
from t2i.families.base import Conditioning, Frame


class StableDiffusionXL:
    """SDXL (2307.01952), epsilon or v prediction as the checkpoint's scheduler says. The VAE stays in fp32."""

    name = "sdxl"
    lora_targets: Sequence[str] = ("to_q", "to_k", "to_v", "to_out.0")
    framed: Sequence[str] = ("time_ids",)
    longest_edge: int = 0
    max_sequence_length: int = 0

    def __init__(self, pipeline: StableDiffusionXLPipeline) -> None:
        self.pipeline = pipeline
        self.denoiser: nn.Module = pipeline.unet
        self.noise = DDPMScheduler.from_config(pipeline.scheduler.config)
        kind = self.noise.config.prediction_type
        if kind not in ("epsilon", "v_prediction"):
            raise UserError(f"Stable Diffusion XL predicts epsilon or v; this checkpoint's scheduler says '{kind}'.")
        self.resolution: int = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
        self.multiple: int = pipeline.vae_scale_factor * 2 ** (len(pipeline.unet.config.down_block_types) - 1)

    @classmethod
    def load(cls, path: str, revision: str | None = None) -> StableDiffusionXL:
        """Load a pipeline folder or hub repository in fp32, whatever precision it is stored in."""
        return cls(StableDiffusionXLPipeline.from_pretrained(path, revision=revision, dtype=torch.float32))

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        factor = self.pipeline.vae_scale_factor
        return self.pipeline.unet.config.in_channels, height // factor, width // factor

    def tokenize(self, prompts: Sequence[str], frames: Sequence[Frame]) -> Conditioning:
        """Return both tokenizers' ids, `time_ids` (original size, crop corner, size) and which prompts are empty."""
        found: Conditioning = {}
        for number, tokenizer in enumerate((self.pipeline.tokenizer, self.pipeline.tokenizer_2)):
            found[f"input_ids_{number}"] = tokenizer(
                list(prompts),
                padding="max_length",
                max_length=tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            ).input_ids
        found["time_ids"] = torch.tensor([[*f.original, *f.corner, *f.size] for f in frames], dtype=torch.float32)
        found["empty"] = torch.tensor([not prompt for prompt in prompts])
        return found

    def encode_text(self, tokens: Conditioning) -> Conditioning:
        """Return the two encoders' next-to-last states side by side, and the second one's pooled text.

        An empty prompt is zeros where the pipeline samples its unconditional branch so.
        """
        states, pooled = [], None
        for number, encoder in enumerate((self.pipeline.text_encoder, self.pipeline.text_encoder_2)):
            output = encoder(tokens[f"input_ids_{number}"], output_hidden_states=True)
            states.append(output.hidden_states[-2])
            pooled = output[0]
        assert pooled is not None
        joined = torch.cat(states, dim=-1)
        if self.pipeline.config.force_zeros_for_empty_prompt:
            said = ~tokens["empty"]
            joined, pooled = joined * said[:, None, None], pooled * said[:, None]
        return {"encoder_hidden_states": joined, "text_embeds": pooled, "time_ids": tokens["time_ids"]}

    def encode_image(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        vae = self.pipeline.vae
        with torch.autocast(pixels.device.type, enabled=False):  # SDXL's VAE overflows in half precision
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
        added = {name: conditioning[name] for name in ("text_embeds", "time_ids")}
        text = conditioning["encoder_hidden_states"]
        return denoiser(noisy, t, text, added_cond_kwargs=added, return_dict=False)[0]

    def save_full(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        with torch.device("meta"):
            unet = UNet2DConditionModel.from_config(self.pipeline.unet.config)
        unet.load_state_dict({name: tensor.cpu() for name, tensor in weights.items()}, assign=True)
        pipeline = StableDiffusionXLPipeline(
            **{**self.pipeline.components, "unet": unet},
            force_zeros_for_empty_prompt=self.pipeline.config.force_zeros_for_empty_prompt,
        )
        pipeline.save_pretrained(folder)

    def save_lora(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        unet = self.pipeline.unet
        adapter = get_peft_model_state_dict(unet, state_dict=dict(weights))
        StableDiffusionXLPipeline.save_lora_weights(
            folder,
            unet_lora_layers=convert_state_dict_to_diffusers(adapter),
            # Without it diffusers takes alpha = rank.
            unet_lora_adapter_metadata=unet.peft_config["default"].to_dict(),
        )
