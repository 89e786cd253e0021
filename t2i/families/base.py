"""What a family gives: one interface over every prediction convention and conditioning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

Conditioning = dict[str, Tensor]
"""Name -> tensor with a leading batch dimension, as the denoiser takes it."""


class Frame(NamedTuple):
    """Where a training image was cut from; sizes are (height, width) in pixels."""

    original: tuple[int, int]
    """Size of the file's picture."""
    corner: tuple[int, int]
    """(top, left) of what was kept, in the resized picture."""
    size: tuple[int, int]
    """Size of what was kept."""


class Family(Protocol):
    """One text-to-image architecture. `B` images, `C H W` a latent, `t` timesteps as the scheduler counts them."""

    name: str
    pipeline: Any
    """The diffusers pipeline; sampling and saving go through it."""
    denoiser: nn.Module
    """The part that is trained (a UNet or a transformer)."""
    lora_targets: Sequence[str]
    """Module names that a LoRA adapter goes on by default."""
    framed: Sequence[str]
    """Names in `tokenize`'s result that say where an image was cut from; `encode_text` passes them on as they are."""
    resolution: int
    """Side in pixels of the square images that the model was made for."""
    multiple: int
    """Heights and widths in pixels must be multiples of this: of the autoencoder's factor and the denoiser's own."""
    longest_edge: int
    """Most pixels of a height or width; 0 sets no bound."""
    max_sequence_length: int
    """Tokens of a prompt in the long text encoder, which the pipeline takes by the same name; 0 where it has none."""

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Return `(C, H, W)` of the latent of an image of that many pixels."""

    def tokenize(self, prompts: Sequence[str], frames: Sequence[Frame]) -> Conditioning:
        """Return the token ids of B prompts, and of B frames what the denoiser is told of them, on the CPU.

        Long prompts are cut before the end token.
        """

    def encode_text(self, tokens: Conditioning) -> Conditioning:
        """Return the denoiser's conditioning for B tokenised prompts."""

    def encode_image(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation `(B, C, H, W)` of the latents of `(B, 3, h, w)` pixels in [-1, 1]."""

    def draw_timestep(self, generator: torch.Generator) -> Tensor:
        """Return one timestep (0-d, on the scale of 1000) from the distribution that the family is trained on."""

    def add_noise(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return the noised latents `(B, C, H, W)` at timesteps `(B,)`."""

    def target(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """Return what the denoiser should predict, `(B, C, H, W)`."""

    def predict(self, denoiser: nn.Module, noisy: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the denoiser's prediction `(B, C, H, W)`."""

    def save_full(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Write a pipeline folder that diffusers loads, with these denoiser weights."""

    def save_lora(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Write an adapter that the pipeline's `load_lora_weights` loads, from the denoiser's adapter weights."""
