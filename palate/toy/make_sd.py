"""Trains the miniature Stable Diffusion from nothing: an autoencoder, then text encoder and UNet together."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel

from palate.toy.grammar import prompts, wrong_in_one_word
from palate.toy.tokens import LENGTH, make_tokenizer
from palate.toy.world import render_array, sample_scene


@dataclass(frozen=True)
class Recipe:
    """What the training of the miniature Stable Diffusion spends."""

    scenes: int = 30_000  # rendered once, used by both stages
    vae_steps: int = 1200
    vae_batch: int = 32
    vae_lr: float = 2e-3
    unet_steps: int = 4500
    unet_batch: int = 64
    unet_lr: float = 1e-3
    caption_dropout: float = 0.15  # share of captions left empty, for classifier-free guidance
    wrong_captions: float = 0.15  # share of captions with one thing swapped: the base shall make mistakes
    ema_decay: float = 0.998


def make_scenes(recipe: Recipe, seed: int) -> tuple[Tensor, list[str]]:
    """(N, 3, 32, 32) uint8 images of training prompts and their captions, some of them wrong."""
    rng = np.random.default_rng(seed)
    choices = prompts("train")
    images, captions = [], []
    for _ in tqdm(range(recipe.scenes), desc="scenes", unit="image"):
        prompt = choices[rng.integers(len(choices))]
        images.append(np.round(render_array(sample_scene(rng, prompt)) * 255).astype(np.uint8))
        captions.append(wrong_in_one_word(prompt, rng) if rng.random() < recipe.wrong_captions else prompt)
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), captions


def warm_then_cosine(steps: int, warm: int = 100) -> Callable[[int], float]:
    return lambda step: min(1.0, (step + 1) / warm) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def _pixels(images: Tensor) -> Tensor:
    return (images.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def train_vae(images: Tensor, recipe: Recipe, seed: int) -> AutoencoderKL:
    """An autoencoder of 32 x 32 pixels to (4, 8, 8) latents; `scaling_factor` gives them unit standard deviation."""
    torch.manual_seed(seed)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=16,
        sample_size=images.shape[-1],
        mid_block_add_attention=False,
    ).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=recipe.vae_lr, weight_decay=1e-4, betas=(0.9, 0.99), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warm_then_cosine(recipe.vae_steps))
    bar = tqdm(range(recipe.vae_steps), desc="autoencoder", unit="step")
    for _ in bar:
        batch = _pixels(images[torch.randint(len(images), (recipe.vae_batch,))])
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(batch).latent_dist
            decoded = vae.decode(posterior.sample()).sample
        error = (decoded.float() - batch).abs().mean() + 2 * F.mse_loss(decoded.float(), batch)
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        loss = error + 3e-4 * kl
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        bar.set_postfix(error=f"{error.item():.4f}", kl=f"{kl.item():.2f}", refresh=False)
    vae.eval()
    means, _ = posteriors(vae, images[:4096])
    vae.register_to_config(scaling_factor=round(1.0 / float(means.std()), 5))
    return vae


@torch.no_grad()
def posteriors(vae: AutoencoderKL, images: Tensor) -> tuple[Tensor, Tensor]:
    """Means and standard deviations (N, 4, 8, 8) of the latents of (N, 3, 32, 32) uint8 images, not yet scaled."""
    means, stds = [], []
    for batch in tqdm(images.split(256), desc="latents", unit="batch"):
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(_pixels(batch)).latent_dist
        means.append(posterior.mean.float())
        stds.append(posterior.std.float())
    return torch.cat(means), torch.cat(stds)


def new_unet() -> UNet2DConditionModel:
    """The untrained UNet, 2.5 million parameters."""
    return UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(64, 96),
        norm_num_groups=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=96,
        attention_head_dim=4,
    )


def fit(
    learned: list[nn.Parameter], loss: Callable[[], Tensor], *, steps: int, lr: float, ema_decay: float, title: str
) -> None:
    """Minimise what `loss` draws and computes at each step, in place; the parameters end as their running averages."""
    averages = EMAModel(learned, decay=ema_decay, use_ema_warmup=True, power=0.8)
    optimizer = torch.optim.AdamW(learned, lr=lr, weight_decay=1e-3, betas=(0.9, 0.99), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warm_then_cosine(steps))
    bar = tqdm(range(steps), desc=title, unit="step")
    running = 1.0
    for _ in bar:
        value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        averages.step(learned)
        running += 0.02 * (value.item() - running)
        bar.set_postfix(loss=f"{running:.4f}", refresh=False)
    averages.copy_to(learned)


def train_sd(recipe: Recipe, seed: int, folder: str, vae: AutoencoderKL | None = None) -> StableDiffusionPipeline:
    """Train everything (or all but a given autoencoder), save the pipeline in fp16, and return it in fp32."""
    images, captions = make_scenes(recipe, seed)
    vae = vae or train_vae(images, recipe, seed)
    means, stds = posteriors(vae, images)

    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    ids = torch.tensor(tokenizer(captions, padding="max_length", max_length=LENGTH).input_ids)
    empty = torch.tensor(tokenizer("", padding="max_length", max_length=LENGTH).input_ids)
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=384,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            projection_dim=96,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    unet = new_unet().to(memory_format=torch.channels_last)
    scheduler = DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon",
    )
    learned = [*unet.parameters(), *text_encoder.parameters()]

    def loss() -> Tensor:
        rows = torch.randint(len(means), (recipe.unet_batch,))
        latents = (means[rows] + stds[rows] * torch.randn_like(stds[rows])) * vae.config.scaling_factor
        noise = torch.randn_like(latents)
        timesteps = torch.randint(1000, (len(rows),))
        noisy = scheduler.add_noise(latents, noise, timesteps).contiguous(memory_format=torch.channels_last)
        dropped = torch.rand(len(rows), 1) < recipe.caption_dropout
        hidden = text_encoder(torch.where(dropped, empty, ids[rows])).last_hidden_state
        return F.mse_loss(unet(noisy, timesteps, hidden).sample, noise)  # fp32: bf16 autocast trained slower here

    fit(learned, loss, steps=recipe.unet_steps, lr=recipe.unet_lr, ema_decay=recipe.ema_decay, title="unet")
    pipeline = StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16)
    pipeline.save_pretrained(folder, safe_serialization=True)
    return pipeline.to(torch.float32)
