"""Records of images -> tensors, with every random choice a function of (seed, record, visit).

The images of a pair or a ranking are resized, cropped and flipped alike, and share timestep, noise and caption dropout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol

import torch
from jsonargparse.typing import ClosedUnitInterval, NonNegativeInt, PositiveFloat, PositiveInt
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as tv

from palate.errors import UserError
from palate.randomness import generator, uniform
from palate.records import Pair
from palate.tensor_store import TensorStore
from t2i.batches import Example
from t2i.buckets import Size
from t2i.cache import EncodingCache
from t2i.families.base import Family, Frame
from t2i.kinds import PAIRS, Kind, Record
from t2i.listing import Listing
from t2i.reference_cache import ReferenceErrors, error_key
from t2i.wholes import Whole, of_list


@dataclass
class ImageConfig:
    """How images become pixels."""

    resolution: NonNegativeInt = 0
    """Side of the square training images in pixels; 0 takes the model's own."""
    crop: Literal["center", "random"] = "center"
    """Where the square (or the bucket's rectangle) is cut from the resized image; the same place in all of a record."""
    flip: bool = False
    """Mirror half of the records. Leave off where captions speak of left and right."""
    buckets: bool = False
    """Keep the shape of images: train at sizes of several aspect ratios, each optimiser step at one of them."""
    bucket_step: PositiveInt = 64
    """buckets: heights and widths are multiples of this, in pixels; their area is at most that of the square."""
    max_aspect: PositiveFloat = 2.0
    """buckets: longer to shorter edge of the most elongated sizes; what is longer is cut."""
    caption_dropout: ClosedUnitInterval = 0.0
    """Share of visits on which a record is trained without its caption, for classifier-free guidance."""

    def identity(self) -> dict[str, Any]:
        """Return what changes training images; where there are no buckets, without their settings."""
        own = asdict(self)
        return (
            own if self.buckets else {k: v for k, v in own.items() if k not in ("buckets", "bucket_step", "max_aspect")}
        )


def side_of(image: ImageConfig, family: Family) -> int:
    """Return the side of square training images in pixels; raises UserError for one that the model cannot take."""
    side, step = image.resolution or family.resolution, family.multiple
    if side % step:
        near = [size for size in (side // step * step, side // step * step + step) if size]
        raise UserError(
            f"--data.image.resolution {side}: {family.name} takes multiples of {step} pixels, such as "
            f"{' or '.join(map(str, near))}."
        )
    if 0 < family.longest_edge < side:
        raise UserError(
            f"--data.image.resolution {side}: this {family.name} has places for {family.longest_edge} pixels."
        )
    return side


class Records(Protocol):
    """Pairs, ratings or rankings by number, with their pictures."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[Record, Sequence[Image.Image]]:
        """Return a record and the pictures (RGB) of its outputs."""

    def listed(self, index: int) -> Record | None:
        """Return a record without decoding its pictures; None where its row is bad and bad rows are left out."""

    @property
    def skips(self) -> bool:
        """Whether bad rows are left out; otherwise they are errors."""

    @property
    def whole(self) -> Whole:
        """The dataset that they are records of, the same object for all records of one dataset."""

    listing: Listing | None
    """What a cache knows of that dataset; once it is there, `listed` reads no picture."""


class RecordList:
    """Records held in memory."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = records
        self.listing: Listing | None = None

    @cached_property
    def whole(self) -> Whole:
        return of_list(self.records)

    def __len__(self) -> int:
        return len(self.records)

    def read(self, index: int) -> tuple[Record, list[Image.Image]]:
        record = self.records[index]
        return record, [output.decode() for output in record.outputs]

    def listed(self, index: int) -> Record | None:
        return self.records[index]

    @property
    def skips(self) -> bool:
        return False


class Examples(Dataset[Example]):
    """`examples[(index, visit)]` of records, with all draws of that visit. With a cache no picture is decoded."""

    def __init__(
        self,
        records: Records,
        family: Family,
        config: ImageConfig,
        seed: int,
        *,
        kind: Kind = PAIRS,
        dual: bool = False,
        cache: EncodingCache | None = None,
        references: ReferenceErrors | None = None,
        draws: int = 0,
        size: Size | None = None,
    ) -> None:
        """dual: whether each image of a pair has a caption of its own. draws: after how many visits a record's draws
        come again; 0 never. size: (height, width) of the bucket that all records are in; None is the square.
        """
        self.records, self.config, self.seed, self.kind = records, config, seed, kind
        self.dual, self.cache, self.references, self.draws = dual, cache, references, draws
        self.side = side_of(config, family)
        self.size = size or (self.side, self.side)
        self.latent_shape = family.latent_shape(*self.size)
        self._draw_timestep = family.draw_timestep

    def __len__(self) -> int:
        return len(self.records)

    @property
    def parts(self) -> list[Examples]:
        """The examples of each size."""
        return [self]

    def bucket(self, index: int) -> int:
        """Return in which of the parts an index lies."""
        return 0

    def __getitem__(self, place: tuple[int, int | str]) -> Example:
        index, visit = place
        if self.draws and isinstance(visit, int):
            visit %= self.draws
        record, example = self._at(index, visit)
        return replace(example, reference=self.references.of(record, visit)) if self.references else example

    def record(self, index: int) -> Record:
        """Return the record that is trained on at an index; with a cache without reading pictures."""
        return self.records.read(index)[0] if self.cache is None else self._known(index)

    def _at(self, index: int, visit: int | str) -> tuple[Record, Example]:
        if self.cache is None:
            record, pictures = self.records.read(index)
            return record, self.example(record, pictures, visit)
        record = self._known(index)
        mirrored = self._mirrored(record, visit)
        latents = [self.cache.latent(media, mirrored, self.size) for media in record.outputs]
        posterior = torch.stack([latent.posterior for latent in latents]).float()
        return record, self._drawn(record, visit, None, posterior, tuple(latent.frame for latent in latents))

    def example(self, record: Record, pictures: Sequence[Image.Image], visit: int | str) -> Example:
        """Return a record with the draws of its `visit` (a count, or a name for draws outside of training)."""
        seed = self.seed
        across, down = (0.5, 0.5) if self.config.crop == "center" else (
            uniform(seed, record.id, visit, "crop across"),
            uniform(seed, record.id, visit, "crop down"),
        )  # fmt: skip
        squares = [cut(picture, self.size, across, down) for picture in pictures]
        pixels = torch.stack([square.pixels for square in squares])
        if self._mirrored(record, visit):
            pixels = pixels.flip(-1)
        return self._drawn(record, visit, pixels, None, tuple(square.frame for square in squares))

    def _drawn(
        self,
        record: Record,
        visit: int | str,
        pixels: Tensor | None,
        posterior: Tensor | None,
        frames: tuple[Frame, ...],
    ) -> Example:
        seed, shape = self.seed, self.latent_shape
        dropped = uniform(seed, record.id, visit, "caption dropout") < self.config.caption_dropout
        captions = self._captions(record)
        return Example(
            pixels=pixels,
            posterior=posterior,
            frames=frames,
            captions=("",) * len(captions) if dropped else captions,
            timestep=self._draw_timestep(generator(seed, record.id, visit, "timestep")),
            noise=torch.randn(shape, generator=generator(seed, record.id, visit, "noise")),
            vae_noise=torch.stack(
                [torch.randn(shape, generator=generator(seed, media.id, visit, "vae")) for media in record.outputs]
            ),
            worth=self.kind.worth(record),
            score_gap=record.score_gap if isinstance(record, Pair) and record.score_gap is not None else float("nan"),
        )

    def _mirrored(self, record: Record, visit: int | str) -> bool:
        return self.config.flip and uniform(self.seed, record.id, visit, "flip") < 0.5

    def _captions(self, record: Record) -> tuple[str, ...]:
        if not self.dual:
            return (record.prompt,) * len(record.outputs)
        assert isinstance(record, Pair)
        return record.prompt_chosen or record.prompt, record.prompt_rejected or record.prompt

    def _known(self, index: int) -> Record:
        """Return a record; where bad rows are left out, the next one that the cache has stands in for one it lacks."""
        assert self.cache is not None
        for shift in range(len(self)):
            record = self.records.listed((index + shift) % len(self))
            if record is not None and (self.cache.has(record, self.size) or not self.records.skips):
                return record
        raise UserError("No row of the data can be read.")

    # --- what a cache is filled with -------------------------------------------------------------------------------

    @property
    def said(self) -> dict[str, bool]:
        """What, besides the records, decides which captions training may ask for."""
        return {"dual": self.dual, "dropout": self.config.caption_dropout > 0}

    def texts(self, record: Record) -> set[str]:
        """Return all captions that training may ask for with a record."""
        return {*self._captions(record), *([""] if self.config.caption_dropout else [])}

    def unknown(self, index: int, visit: int | str, known: TensorStore) -> tuple[str, Record, Example | None]:
        """Return the key of a record's draw and the record, with its example where `known` does not have it."""
        listed = self.records.listed(index)
        if listed is not None and (key := error_key(listed, visit)) in known:
            return key, listed, None
        record, example = self._at(index, visit)
        key = error_key(record, visit)
        return key, record, None if key in known else example


def mirrorings(config: ImageConfig) -> list[bool]:
    """Return whether pictures are trained on as they are, and also mirrored."""
    return [False, True] if config.flip else [False]


class Cut(NamedTuple):
    """A rectangle of a picture, and where it was."""

    pixels: Tensor  # (3, H, W) in [-1, 1]
    frame: Frame


def cut(image: Image.Image, size: Size, across: float = 0.5, down: float = 0.5) -> Cut:
    """Return a rectangle of (height, width): the picture resized to cover it (bicubic, antialiased), then cropped.

    across, down: where it lies in what is left over, 0 (left, top) to 1.
    """
    original, left, top = (image.height, image.width), 0, 0
    high, wide = size
    if original != size:
        scale = max(wide / image.width, high / image.height)
        width, height = max(wide, round(image.width * scale)), max(high, round(image.height * scale))
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = round(across * (width - wide)), round(down * (height - high))
        image = image.crop((left, top, left + wide, top + high))
    pixels = tv.pil_to_tensor(image).float().div_(127.5).sub_(1.0)
    return Cut(pixels, Frame(original, (top, left), size))
