"""Trains the miniature Stable Diffusion 3 from nothing, on the latents of the miniature Stable Diffusion's autoencoder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from palate.toy import make_sd
from palate.toy.tokens import LENGTH, make_tokenizer

TEXT_WIDTH = 48  # of each of the two text encoders; side by side they are as wide as the transformer
NO_T5: dict[str, Any] = {"text_encoder_3": None, "tokenizer_3": None}
"""Keywords with which diffusers loads the pipeline, which has no T5."""
SEQUENCE_LENGTH = 1
"""Tokens of zeros in the place of T5's text that it is trained and drawn with."""


@dataclass(frozen=True)
class Recipe:
    """What the training of the miniature Stable Diffusion 3 spends."""

    scenes: int = 30_000
    steps: int = 5000
    batch: int = 64
    lr: float = 1e-3
    caption_dropout: float = 0.15  # share of captions left empty, for classifier-free guidance
    wrong_captions: float = 0.15  # share of captions with one thing swapped: the base shall make mistakes
    many_zeros: float = 0.1  # share of steps with 64 tokens of zeros, so that their number matters little
    ema_decay: float = 0.998


def new_transformer() -> SD3Transformer2DModel:
    """The untrained transformer."""
    return SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        num_layers=4,
        attention_head_dim=24,
        num_attention_heads=4,
        joint_attention_dim=2 * TEXT_WIDTH,
        caption_projection_dim=2 * TEXT_WIDTH,
        pooled_projection_dim=2 * TEXT_WIDTH,
        out_channels=4,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
    )


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """An untrained text encoder for the toy's tokenizer."""
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            projection_dim=TEXT_WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _conditioning(pipeline: StableDiffusion3Pipeline, ids: Tensor, zeros: int) -> dict[str, Tensor]:
    """What the transformer is told of (B, 16) token ids, with so many tokens of zeros after them."""
    first, second = (
        encoder(ids, output_hidden_states=True) for encoder in (pipeline.text_encoder, pipeline.text_encoder_2)
    )
    states = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
    return {
        "encoder_hidden_states": F.pad(states, (0, 0, 0, zeros)),
        "pooled_projections": torch.cat([first.text_embeds, second.text_embeds], dim=-1),
    }


def train_flow(recipe: Recipe, seed: int, folder: Path, sd: Path) -> StableDiffusion3Pipeline:
    """Train text encoders and transformer, save the pipeline in fp16, and return it in fp32.

    sd: folder of the miniature Stable Diffusion, whose autoencoder is taken as it is.
    """
    images, captions = make_sd.make_scenes(
        make_sd.Recipe(scenes=recipe.scenes, wrong_captions=recipe.wrong_captions), seed
    )
    vae = AutoencoderKL.from_pretrained(sd, subfolder="vae", dtype=torch.float32)
    vae.register_to_config(shift_factor=0.0, _name_or_path="")
    means, stds = make_sd.posteriors(vae, images)

    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    pipeline = StableDiffusion3Pipeline(
        transformer=new_transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae.eval(),
        text_encoder=new_text_encoder(tokenizer),
        tokenizer=tokenizer,
        text_encoder_2=new_text_encoder(tokenizer),
        tokenizer_2=tokenizer,
        **NO_T5,
    )
    ids = torch.tensor(tokenizer(captions, padding="max_length", max_length=LENGTH).input_ids)
    empty = torch.tensor(tokenizer("", padding="max_length", max_length=LENGTH).input_ids)
    trained = (pipeline.transformer, pipeline.text_encoder, pipeline.text_encoder_2)
    learned = [parameter for part in trained for parameter in part.train().parameters()]

    def loss() -> Tensor:
        rows = torch.randint(len(means), (recipe.batch,))
        latents = (means[rows] + stds[rows] * torch.randn_like(stds[rows])) * vae.config.scaling_factor
        noise = torch.randn_like(latents)
        sigma = torch.randn(len(rows)).sigmoid()  # logit-normal, as in SD3
        dropped = torch.rand(len(rows), 1) < recipe.caption_dropout
        tokens = torch.where(dropped, empty, ids[rows])
        zeros = 64 if torch.rand(()) < recipe.many_zeros else SEQUENCE_LENGTH
        noisy = torch.lerp(latents, noise, sigma.view(-1, 1, 1, 1))
        velocity = pipeline.transformer(noisy, timestep=1000 * sigma, **_conditioning(pipeline, tokens, zeros)).sample
        return F.mse_loss(velocity, noise - latents)

    make_sd.fit(learned, loss, steps=recipe.steps, lr=recipe.lr, ema_decay=recipe.ema_decay, title="transformer")
    for part in trained:
        part.eval()
    pipeline.to(torch.float16)
    pipeline.save_pretrained(folder, safe_serialization=True)
    return pipeline.to(torch.float32)
