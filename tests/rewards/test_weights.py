"""Checkpoint files: every way of saving is read, nothing but tensors is unpickled, and hashes name contents."""

from __future__ import annotations

import gc
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from palate.errors import UserError
from rewards.weights import assign, content_hash, read_state, shared

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.ones(2)}


@pytest.mark.parametrize(
    "wrapped",
    [
        STATE,
        {"state_dict": STATE, "epoch": 3},
        {"model": STATE},
        {"state_dict": {f"module.{name}": tensor for name, tensor in STATE.items()}},
    ],
    ids=["flat", "state_dict", "model", "module."],
)
def test_every_wrapper_is_taken_off(wrapped, tmp_path) -> None:
    torch.save(wrapped, tmp_path / "new.pt")
    torch.save(wrapped, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("new.pt", "old.pth"):
        found = read_state(tmp_path / name)
        assert found.keys() == STATE.keys() and all(torch.equal(found[n], STATE[n]) for n in STATE)


def test_safetensors_are_read(tmp_path) -> None:
    save_file(STATE, tmp_path / "x.safetensors")
    assert torch.equal(read_state(tmp_path / "x.safetensors")["a.weight"], STATE["a.weight"])


class Attack:
    def __reduce__(self):
        return (print, ("owned",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"torn", "cannot be read"),
        (pickle.dumps(Attack()), "cannot be read"),
        ([1, 2], "holds a list"),
        ({"a": 3}, "no table of named tensors"),
        ({}, "no table of named tensors"),
    ],
)
def test_what_is_no_checkpoint_is_refused(content, message, tmp_path, capsys) -> None:
    path = tmp_path / "x.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(UserError, match=message):
        read_state(path)
    assert "owned" not in capsys.readouterr().out


def test_assigning_copies_nothing() -> None:
    with torch.device("meta"):
        layer = nn.Linear(3, 2)
    state = {"weight": STATE["a.weight"], "bias": STATE["a.bias"]}
    assign(layer, state, "x")
    assert layer.weight.data_ptr() == STATE["a.weight"].data_ptr()
    with pytest.raises(UserError, match="weights of x do not fit the model: it lacks bias; other shapes have weight"):
        assign(layer, {"weight": torch.zeros(1)}, "x")


def test_hashes_name_contents_and_settings(tmp_path) -> None:
    for name, content in (("a.pt", b"x" * 40_000_000), ("b.pt", b"x" * 40_000_000), ("c.pt", b"x" * 39_999_999 + b"y")):
        (tmp_path / name).write_bytes(content)
    a, b, c = (content_hash("s", [tmp_path / name]) for name in ("a.pt", "b.pt", "c.pt"))
    assert a == b != c and len(a) == 32
    assert content_hash("t", [tmp_path / "a.pt"]) != a
    (tmp_path / "a.pt").write_bytes(b"changed")
    assert content_hash("s", [tmp_path / "a.pt"]) != a


def test_things_are_made_once_while_they_are_held() -> None:
    made: list[int] = []

    def make() -> nn.Module:
        made.append(1)
        return nn.Linear(2, 2)

    first = shared(("test", "x"), make)
    assert shared(("test", "x"), make) is first and len(made) == 1
    assert shared(("test", "y"), make) is not first
    del first
    gc.collect()
    shared(("test", "x"), make)
    assert len(made) == 3
