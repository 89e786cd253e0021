"""FLUX.1: rectified flow on packed latents, CLIP's pooled text and T5's states, guidance as an input."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from peft import get_peft_model_state_dict
from torch import Tensor, nn

from t2i.families.base import Conditioning, Frame

GUIDANCE = 3.5
"""What a guidance-distilled model (FLUX.1-dev) is told while it trains: the pipeline's default when it samples."""


class Flux:
    """FLUX.1: `x_sigma = (1 - sigma) x + sigma noise`, the model predicts `noise - x`."""

    name = "flux"
    lora_targets: Sequence[str] = (
        *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
        *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
    )
    framed: Sequence[str] = ()
    longest_edge: int = 0
    max_sequence_length: int = 512  # as the pipeline samples

    def __init__(self, pipeline: FluxPipeline) -> None:
        self.pipeline = pipeline
        self.denoiser: nn.Module = pipeline.transformer
        self.resolution: int = pipeline.default_sample_size * pipeline.vae_scale_factor
        self.multiple: int = 2 * pipeline.vae_scale_factor

    @classmethod
    def load(cls, path: str, revision: str | None = None) -> Flux:
        """Load a pipeline folder or hub repository in fp32, whatever precision it is stored in."""
        return cls(FluxPipeline.from_pretrained(path, revision=revision, dtype=torch.float32))

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Return the shape before packing: 2 x 2 places become the channels of one token inside `predict`."""
        factor = self.pipeline.vae_scale_factor
        return self.pipeline.vae.config.latent_channels, height // factor, width // factor

    def tokenize(self, prompts: Sequence[str], frames: Sequence[Frame]) -> Conditioning:
        pipeline, found = self.pipeline, Conditioning()
        lengths = (pipeline.tokenizer_max_length, self.max_sequence_length)
        for number, tokenizer in enumerate((pipeline.tokenizer, pipeline.tokenizer_2)):
            found[f"input_ids_{number}"] = tokenizer(
                list(prompts), padding="max_length", max_length=lengths[number], truncation=True, return_tensors="pt"
            ).input_ids
        return found

    def encode_text(self, tokens: Conditioning) -> Conditioning:
        return {
            "pooled_projections": self.pipeline.text_encoder(tokens["input_ids_0"]).pooler_output,
            "encoder_hidden_states": self.pipeline.text_encoder_2(tokens["input_ids_1"])[0],
        }

    def encode_image(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        vae = self.pipeline.vae
        posterior = vae.encode(pixels.to(vae.dtype)).latent_dist
        shift, scale = vae.config.shift_factor, vae.config.scaling_factor
        return (posterior.mean.float() - shift) * scale, posterior.std.float() * scale

    def draw_timestep(self, generator: torch.Generator) -> Tensor:
        """Return 1000 sigma, logit-normal(0, 1)."""
        return 1000 * torch.randn((), generator=generator).sigmoid()

    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        sigma = (t / 1000).view(-1, 1, 1, 1)
        return (1 - sigma) * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return noise - latents

    def predict(self, denoiser: nn.Module, noisy: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        height, width = noisy.shape[-2:]
        guided = self.pipeline.transformer.config.guidance_embeds
        predicted = denoiser(
            pack(noisy),
            timestep=t / 1000,
            guidance=torch.full_like(t, GUIDANCE, dtype=torch.float32) if guided else None,
            txt_ids=noisy.new_zeros(conditioning["encoder_hidden_states"].shape[1], 3),
            img_ids=positions(height // 2, width // 2).to(noisy),
            **conditioning,
            return_dict=False,
        )[0]
        return unpack(predicted, height, width)

    def save_full(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        with torch.device("meta"):
            transformer = FluxTransformer2DModel.from_config(self.pipeline.transformer.config)
        transformer.load_state_dict({name: tensor.cpu() for name, tensor in weights.items()}, assign=True)
        FluxPipeline(**{**self.pipeline.components, "transformer": transformer}).save_pretrained(folder)

    def save_lora(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        transformer = self.pipeline.transformer
        FluxPipeline.save_lora_weights(
            folder,
            transformer_lora_layers=get_peft_model_state_dict(transformer, state_dict=dict(weights)),
            # Without it diffusers takes alpha = rank.
            transformer_lora_adapter_metadata=transformer.peft_config["default"].to_dict(),
        )


def pack(latents: Tensor) -> Tensor:
    """Return tokens `(B, h/2 * w/2, 4C)` of latents `(B, C, h, w)`: each 2 x 2 square, channel by channel."""
    return nn.functional.pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Undo `pack`."""
    return nn.functional.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (height // 2, width // 2)), 2)


def positions(rows: int, columns: int) -> Tensor:
    """Return the places `(rows * columns, 3)` of image tokens: (0, row, column)."""
    return torch.cartesian_prod(torch.arange(1), torch.arange(rows), torch.arange(columns))
