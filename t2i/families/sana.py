"""Sana: flow matching on a deep-compression autoencoder's latents, a linear-attention transformer, Gemma as text encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import signature
from pathlib import Path

import torch
from diffusers import SanaPipeline, SanaTransformer2DModel
from peft import get_peft_model_state_dict
from torch import Tensor, nn

from t2i.families.base import Conditioning, Frame

INSTRUCTION = "\n".join(signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default)
"""What Gemma is told before each prompt; the pipeline's own words."""


class Sana:
    """Sana (2410.10629): `x_sigma = (1 - sigma) x + sigma noise`, the model predicts `noise - x`."""

    name = "sana"
    lora_targets: Sequence[str] = ("to_q", "to_k", "to_v", "to_out.0")
    framed: Sequence[str] = ()
    longest_edge: int = 0
    max_sequence_length: int = 300  # as the pipeline samples

    def __init__(self, pipeline: SanaPipeline) -> None:
        self.pipeline = pipeline
        self.denoiser: nn.Module = pipeline.transformer
        config = pipeline.scheduler.config
        self.shift: float = config.get("flow_shift", config.get("shift", 1.0))
        self.resolution: int = pipeline.transformer.config.sample_size * pipeline.vae_scale_factor
        self.multiple: int = pipeline.transformer.config.patch_size * pipeline.vae_scale_factor
        pipeline.tokenizer.padding_side = "right"

    @classmethod
    def load(cls, path: str, revision: str | None = None) -> Sana:
        """Load a pipeline folder or hub repository in fp32, whatever precision it is stored in."""
        return cls(SanaPipeline.from_pretrained(path, revision=revision, dtype=torch.float32))

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        factor = self.pipeline.vae_scale_factor
        return self.pipeline.transformer.config.in_channels, height // factor, width // factor

    def tokenize(self, prompts: Sequence[str], frames: Sequence[Frame]) -> Conditioning:
        """Return ids and mask of the instruction and the prompt; an empty prompt goes without the instruction."""
        tokenizer = self.pipeline.tokenizer
        length = len(tokenizer.encode(INSTRUCTION)) + self.max_sequence_length - 2
        encoded = tokenizer(
            # The unconditional branch is sampled without the instruction.
            [INSTRUCTION + said if (said := prompt.lower().strip()) else "" for prompt in prompts],
            padding="max_length",
            max_length=length,
            truncation=True,
            return_tensors="pt",
        )
        empty = torch.tensor([not prompt.strip() for prompt in prompts])
        return {"input_ids": encoded.input_ids, "attention_mask": encoded.attention_mask, "empty": empty}

    def encode_text(self, tokens: Conditioning) -> Conditioning:
        """Return Gemma's states of the start token and the last places, or of an empty prompt the first, as many as told."""
        mask, count = tokens["attention_mask"], self.max_sequence_length
        states = self.pipeline.text_encoder(tokens["input_ids"], attention_mask=mask)[0]
        prompt, first = (
            torch.tensor(places, device=mask.device)
            for places in ([0, *range(mask.shape[1] + 1 - count, mask.shape[1])], [*range(count)])
        )
        kept = torch.where(tokens["empty"][:, None], first, prompt)
        return {
            "encoder_hidden_states": states.take_along_dim(kept[:, :, None], 1),
            "encoder_attention_mask": mask.take_along_dim(kept, 1),
        }

    def encode_image(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the latents and zeros: this autoencoder is deterministic."""
        vae = self.pipeline.vae
        latents = vae.encode(pixels.to(vae.dtype), return_dict=False)[0].float() * vae.config.scaling_factor
        return latents, torch.zeros_like(latents)

    def draw_timestep(self, generator: torch.Generator) -> Tensor:
        """Return 1000 sigma: logit-normal(0, 1), moved to the noisy end by the checkpoint's shift."""
        u = torch.randn((), generator=generator).sigmoid()
        return 1000 * self.shift * u / (1 + (self.shift - 1) * u)

    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        sigma = (t / 1000).view(-1, 1, 1, 1)
        return (1 - sigma) * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return noise - latents

    def predict(self, denoiser: nn.Module, noisy: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        scale = self.pipeline.transformer.config.timestep_scale
        return denoiser(noisy, timestep=t * scale, **conditioning, return_dict=False)[0]

    def save_full(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        with torch.device("meta"):
            transformer = SanaTransformer2DModel.from_config(self.pipeline.transformer.config)
        transformer.load_state_dict({name: tensor.cpu() for name, tensor in weights.items()}, assign=True)
        SanaPipeline(**{**self.pipeline.components, "transformer": transformer}).save_pretrained(folder)

    def save_lora(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        transformer = self.pipeline.transformer
        SanaPipeline.save_lora_weights(
            folder,
            transformer_lora_layers=get_peft_model_state_dict(transformer, state_dict=dict(weights)),
            # Without it diffusers takes alpha = rank.
            transformer_lora_adapter_metadata=transformer.peft_config["default"].to_dict(),
        )
