"""Stable Diffusion 3 and 3.5: rectified flow, three text encoders, a multimodal diffusion transformer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from peft import get_peft_model_state_dict
from torch import Tensor, nn

from t2i.families import left_out
from t2i.families.base import Conditioning, Frame


class StableDiffusion3:
    """SD3 and SD3.5 (2403.03206): `x_sigma = (1 - sigma) x + sigma noise`, the model predicts `noise - x`."""

    name = "sd3"
    lora_targets: Sequence[str] = (
        *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
        *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
    )
    framed: Sequence[str] = ()
    max_sequence_length: int = 256  # as the pipeline samples

    def __init__(self, pipeline: StableDiffusion3Pipeline) -> None:
        self.pipeline = pipeline
        self.denoiser: nn.Module = pipeline.transformer
        self.shift: float = pipeline.scheduler.config.shift
        self.resolution: int = pipeline.transformer.config.sample_size * pipeline.vae_scale_factor
        self.multiple: int = pipeline.transformer.config.patch_size * pipeline.vae_scale_factor
        self.longest_edge: int = pipeline.transformer.config.pos_embed_max_size * self.multiple

    @classmethod
    def load(cls, path: str, revision: str | None = None) -> StableDiffusion3:
        """Load a pipeline folder or hub repository in fp32, whatever precision it is stored in; T5 may be left out."""
        absent = left_out(path, revision)
        return cls(StableDiffusion3Pipeline.from_pretrained(path, revision=revision, dtype=torch.float32, **absent))

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        factor = self.pipeline.vae_scale_factor
        return self.pipeline.transformer.config.in_channels, height // factor, width // factor

    def tokenize(self, prompts: Sequence[str], frames: Sequence[Frame]) -> Conditioning:
        """Return the ids of the two CLIP tokenizers and, where the checkpoint has it, of T5's."""
        pipeline, found = self.pipeline, Conditioning()
        tokenizers = (pipeline.tokenizer, pipeline.tokenizer_2, pipeline.tokenizer_3)
        for number, tokenizer in enumerate(tokenizers):
            if tokenizer is not None:
                found[f"input_ids_{number}"] = tokenizer(
                    list(prompts),
                    padding="max_length",
                    max_length=self.max_sequence_length if number == 2 else pipeline.tokenizer_max_length,
                    truncation=True,
                    return_tensors="pt",
                ).input_ids
        return found

    def encode_text(self, tokens: Conditioning) -> Conditioning:
        """Return [CLIP-L | CLIP-G, padded with zeros to T5's width] followed by T5's states, and the pooled text."""
        pipeline = self.pipeline
        first, second = (
            encoder(tokens[f"input_ids_{number}"], output_hidden_states=True)
            for number, encoder in enumerate((pipeline.text_encoder, pipeline.text_encoder_2))
        )
        clip = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        width = pipeline.transformer.config.joint_attention_dim
        if pipeline.text_encoder_3 is None:
            t5 = clip.new_zeros(len(clip), self.max_sequence_length, width)
        else:
            t5 = pipeline.text_encoder_3(tokens["input_ids_2"])[0]
        clip = nn.functional.pad(clip, (0, width - clip.shape[-1]))
        pooled = torch.cat([first[0], second[0]], dim=-1)
        return {"encoder_hidden_states": torch.cat([clip, t5], dim=1), "pooled_projections": pooled}

    def encode_image(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        vae = self.pipeline.vae
        posterior = vae.encode(pixels.to(vae.dtype)).latent_dist
        shift, scale = vae.config.shift_factor, vae.config.scaling_factor
        return (posterior.mean.float() - shift) * scale, posterior.std.float() * scale

    def draw_timestep(self, generator: torch.Generator) -> Tensor:
        """Return 1000 sigma: logit-normal(0, 1), moved to the noisy end by the checkpoint's shift (2403.03206, eq. 23)."""
        u = torch.randn((), generator=generator).sigmoid()
        return 1000 * self.shift * u / (1 + (self.shift - 1) * u)

    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        sigma = (t / 1000).view(-1, 1, 1, 1)
        return (1 - sigma) * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return noise - latents

    def predict(self, denoiser: nn.Module, noisy: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        return denoiser(noisy, timestep=t, **conditioning, return_dict=False)[0]

    def save_full(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        with torch.device("meta"):
            transformer = SD3Transformer2DModel.from_config(self.pipeline.transformer.config)
        transformer.load_state_dict({name: tensor.cpu() for name, tensor in weights.items()}, assign=True)
        StableDiffusion3Pipeline(**{**self.pipeline.components, "transformer": transformer}).save_pretrained(folder)

    def save_lora(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        transformer = self.pipeline.transformer
        StableDiffusion3Pipeline.save_lora_weights(
            folder,
            transformer_lora_layers=get_peft_model_state_dict(transformer, state_dict=dict(weights)),
            # Without it diffusers takes alpha = rank.
            transformer_lora_adapter_metadata=transformer.peft_config["default"].to_dict(),
        )
