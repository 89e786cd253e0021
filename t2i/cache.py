"""Latents and text embeddings, computed once: each picture and each caption of the data goes through its encoder one time.

A latent is kept as the mean and the deviation of the autoencoder's posterior, so that training draws from it as it does
without a cache. Entries are named by content: two records that share a picture share its latent, and two captions that
are cut to the same tokens share an embedding.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor, nn
from tqdm.auto import tqdm

from palate.errors import UserError
from palate.records import Media, Pair, Ranking, Rating
from palate.tensor_store import TensorStore, key_of, weights_hash
from t2i.families.base import Conditioning, Family, Frame

if TYPE_CHECKING:
    from t2i.buckets import Buckets, Size

PART = 512
"""Entries in one file of the cache."""
NO_FRAME = Frame((1, 1), (0, 0), (1, 1))
"""Stands for an image where only a caption is encoded."""
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Latent(NamedTuple):
    """A picture as the autoencoder sees it."""

    posterior: Tensor
    """(2, C, h, w): mean and standard deviation."""
    frame: Frame


class EncodingCache:
    """Latents by picture and embeddings by caption, on disk."""

    def __init__(
        self, folder: Path, family: Family, *, side: int, precision: str, buckets: Buckets | None = None
    ) -> None:
        """side: of the square training images, in pixels. precision: in which the encoders run (fp32, bf16, fp16).

        buckets: the sizes of training images, where they are not all that square.
        """
        parts = {name: p for name, p in family.pipeline.components.items() if isinstance(p, nn.Module)}
        vae = [(name, part) for name, part in parts.items() if name == "vae"]
        encoders = [(name, part) for name, part in sorted(parts.items()) if name.startswith("text_encoder")]
        made = {"family": family.name, "precision": precision}
        self.folder, self.family, self.side, self.precision = folder, family, side, precision
        self.buckets, self._looked_up = buckets, False
        self.kept = torch.float32 if precision == "fp32" else torch.float16
        config = {k: str(value) for k, value in family.pipeline.vae.config.items() if not k.startswith("_")}
        sizes: dict[str, Any] = {"buckets": True} if buckets else {"side": side}
        self.latents = TensorStore(folder / "latents", {**made, **sizes, "vae": weights_hash(vae), "config": config})
        scalars = (bool, int, float, str)
        options = {k: v for k, v in family.pipeline.config.items() if isinstance(v, scalars) and not k.startswith("_")}
        if family.max_sequence_length:
            options["max_sequence_length"] = family.max_sequence_length
        self.texts = TensorStore(folder / "texts", {**made, "encoders": weights_hash(encoders), "options": options})

    def look_up(self) -> None:
        """Look up what is on disk, once; every process takes part. Damaged files are removed."""
        if self._looked_up:
            return
        self._looked_up = True
        state, stores = PartialState(), (self.latents, self.texts)
        damaged = sum(gather_object([store.verify(state.process_index, state.num_processes) for store in stores]))
        if damaged:
            state.print(f"{damaged} damaged files of the cache were removed; what they held is computed again.")
        state.wait_for_everyone()
        for store in stores:
            store.load()

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which the encoders run."""
        return autocast(self.precision)

    def size(self, pictures: Sequence[Size]) -> Size:
        """Return the size at which a record is trained on whose pictures have these sizes."""
        return self.buckets.nearest(pictures) if self.buckets else (self.side, self.side)

    def key(self, picture: str, mirrored: bool, size: Size) -> str:
        """Return the key of a picture: of its content id, its size in training, and whether it is mirrored."""
        trained = f"-{size[0]}x{size[1]}" if self.buckets else ""
        return f"{picture}{trained}{'-mirrored' if mirrored else ''}"

    def has(self, record: Pair | Rating | Ranking, size: Size, mirrored: bool = False) -> bool:
        """Return whether all pictures of a record are there."""
        return all(self.key(media.id, mirrored, size) in self.latents for media in record.outputs)

    def latent(self, media: Media, mirrored: bool, size: Size) -> Latent:
        """Return a picture's latent; raises UserError where the cache has none."""
        try:
            entry = self.latents[self.key(media.id, mirrored, size)]
        except KeyError:
            raise self._stale(f"the image {media.path or media.id}", self.latents) from None
        original, corner, size = (tuple(row) for row in entry["frame"].tolist())
        return Latent(entry["posterior"], Frame(original, corner, size))

    def conditioning(self, captions: Sequence[str], frames: Sequence[Frame]) -> Conditioning:
        """Return what `encode_text` gives for B captions and frames; raises UserError where the cache has no such text."""
        tokens = self.family.tokenize(captions, frames)
        keys = caption_keys(self.family, tokens)
        try:
            rows = [self.texts[key] for key in keys]
        except KeyError as error:
            raise self._stale(f"the caption {captions[keys.index(error.args[0])]!r}", self.texts) from None
        found = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        return {**found, **{name: tokens[name] for name in self.family.framed}}

    def _stale(self, what: str, store: TensorStore) -> UserError:
        return UserError(
            f"The cache {store.folder} has nothing for {what}: have the data changed since it was filled? Remove "
            f"{store.folder}/complete-*.json and {self.folder}/listings, and what is missing will be computed."
        )


def autocast(precision: str) -> AbstractContextManager[Any]:
    """Return the context of forwards that the loop does not see."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(PartialState().device.type, HALVES[precision])


def caption_keys(family: Family, tokens: Conditioning) -> list[str]:
    """Return the key of each of B tokenised captions: of its tokens, whatever image they go with."""
    own = [tokens[name] for name in sorted(tokens) if name not in family.framed]
    return [key_of(*row) for row in zip(*own, strict=True)]


@torch.no_grad()
def encode_captions(cache: EncodingCache, captions: Sequence[str], batch_size: int) -> None:
    """Encode those of all captions that the cache lacks; every process does its share."""
    state, family = PartialState(), cache.family
    mine = captions[state.process_index :: state.num_processes]
    waiting: dict[str, dict[str, Tensor]] = {}
    bar = tqdm(total=len(mine), desc="encode captions", unit="caption", disable=not state.is_main_process)
    for begin in range(0, len(mine), batch_size):
        some = mine[begin : begin + batch_size]
        tokens = family.tokenize(some, [NO_FRAME] * len(some))
        keys = caption_keys(family, tokens)
        new = [n for n, key in enumerate(keys) if key not in cache.texts and key not in waiting]
        if new:
            with cache.autocast():
                states = family.encode_text({name: t[new].to(state.device) for name, t in tokens.items()})
            own = {name: value.cpu() for name, value in states.items() if name not in family.framed}
            if not waiting and begin == 0:
                row = sum(value[0].nbytes for value in own.values())
                require_space(cache.texts.folder, row * len(mine), f"{len(captions):,} captions")
            waiting.update({keys[n]: {k: value[at] for k, value in own.items()} for at, n in enumerate(new)})
        bar.update(len(some))
        if len(waiting) >= PART:
            cache.texts.add(waiting)
            waiting = {}
    if waiting:
        cache.texts.add(waiting)
    bar.close()


def require_space(folder: Path, size: int, what: str) -> None:
    """Say how much is about to be written; raises UserError where the disk has less room."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    state = PartialState()
    state.print(f"{what} to encode, at most {size / 1e9:,.2f} GB, into {folder}")
    if size > free:
        raise UserError(
            f"{what} need {size / 1e9:,.1f} GB in {folder}, which has {free / 1e9:,.1f} GB. Give --data.cache "
            "a larger disk, or take fewer rows with --data.limit."
        )


def encoders_of(family: Family) -> Iterator[nn.Module]:
    """Yield the parts of a pipeline that cached training does not need on the device."""
    for part in family.pipeline.components.values():
        if isinstance(part, nn.Module) and part is not family.denoiser:
            yield part
