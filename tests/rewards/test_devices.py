"""Portions of a batch: halved when the memory does not suffice, and no result lost or doubled."""

from __future__ import annotations

import pytest
import torch

from palate.errors import UserError
from rewards.devices import Portions, find_device, find_dtype


class Memory:
    """An encoder that doubles its inputs and has room for so many at once."""

    def __init__(self, room: int, error: Exception | None = None) -> None:
        self.room, self.sizes = room, []
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        self.inputs = torch.arange(23.0)[:, None]

    def __call__(self, where: slice) -> torch.Tensor:
        part = self.inputs[where]
        if len(part) > self.room:
            raise self.error
        self.sizes.append(len(part))
        return 2 * part


@pytest.mark.parametrize("room", [1, 2, 3, 5, 16, 100])
def test_the_batch_is_halved_until_it_fits(room) -> None:
    memory, portions = Memory(room), Portions(16)
    assert torch.equal(portions.run(memory, 23), 2 * memory.inputs)
    assert max(memory.sizes) <= room and sum(memory.sizes) == 23
    # The size that fitted is kept: the next batch begins with it.
    memory.sizes = []
    portions.run(memory, 23)
    assert memory.sizes[0] == portions.size <= min(room, 16)
    assert room >= 16 or 2 * portions.size > room


def test_a_short_batch_halves_what_was_tried() -> None:
    """5 inputs with room for 3: 5 fail, 3 and 2 pass; 64 is never tried."""
    memory, portions = Memory(3), Portions(64)
    memory.inputs = memory.inputs[:5]
    portions.run(memory, 5)
    assert memory.sizes == [3, 2]


def test_the_memory_of_a_cpu_counts_too() -> None:
    memory = Memory(
        4, RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")
    )
    assert torch.equal(Portions(8).run(memory, 23), 2 * memory.inputs)


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Portions(8).run(Memory(4, RuntimeError("mat1 and mat2 shapes cannot be multiplied")), 23)


def test_a_single_input_that_does_not_fit_is_said() -> None:
    with pytest.raises(UserError, match="a single input do not fit"):
        Portions(8).run(Memory(0), 23)


def test_names_are_checked() -> None:
    assert find_device("cpu").type == "cpu" and find_dtype(None, find_device("cpu")) == "float32"
    assert find_dtype(None, torch.device("cuda")) == "bfloat16"
    for wrong, message in (
        (lambda: Portions(0), "at least 1; got 0"),
        (lambda: find_device("gpu"), "Unknown device 'gpu'"),
        (lambda: find_dtype("fp16", find_device("cpu")), "Unknown dtype 'fp16'"),
    ):
        with pytest.raises(UserError, match=message):
            wrong()
