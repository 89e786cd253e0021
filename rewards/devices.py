"""Where a model runs, in which arithmetic, and how many inputs it takes at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from palate.errors import UserError, unknown

Dtype = Literal["float32", "float16", "bfloat16"]


def find_device(wanted: str | None) -> torch.device:
    """Return the device of that name; None takes cuda, then mps, then cpu. UserError for one that is not there."""
    if wanted is None:
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.mps.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise UserError(f"Unknown device {wanted!r}. Expected cpu, cuda, cuda:1, mps, ...") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"There is no {wanted}: torch sees {torch.cuda.device_count()} CUDA devices. Use device='cpu'.")
    return device


def find_dtype(wanted: str | None, device: torch.device) -> Dtype:
    """Return the arithmetic of that name; None takes bfloat16 on a GPU and float32 elsewhere."""
    if wanted is None:
        return "bfloat16" if device.type == "cuda" else "float32"
    for known in get_args(Dtype):
        if wanted == known:
            return known
    raise UserError(unknown("dtype", str(wanted), get_args(Dtype)))


def torch_dtype(name: Dtype) -> torch.dtype:
    """Return torch's dtype of that name."""
    return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[name]


class Portions:
    """Runs a model over inputs in portions of at most `size`, halved for good whenever the memory does not suffice."""

    def __init__(self, size: int) -> None:
        if size < 1:
            raise UserError(f"batch_size must be at least 1; got {size}.")
        self.size = size

    def run(self, encode: Callable[[slice], Tensor], count: int) -> Tensor:
        """Return `encode(slice)` of 0..count, joined along the first axis. count is at least 1.

        UserError if even a single input does not fit into the memory.
        """
        from accelerate.utils.memory import should_reduce_batch_size

        parts: list[Tensor] = []
        start = 0
        while start < count:
            stop = min(start + self.size, count)
            try:
                parts.append(encode(slice(start, stop)))
                start = stop
                continue
            except RuntimeError as error:
                if not (isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)):
                    raise
                if stop - start == 1:
                    raise UserError(
                        f"The model and a single input do not fit into the memory ({error}). Use a device with more, a "
                        "smaller model, or dtype='bfloat16'."
                    ) from error
            # Outside the except block: the error's traceback holds the tensors that filled the memory.
            self.size = -(-(stop - start) // 2)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return torch.cat(parts)
