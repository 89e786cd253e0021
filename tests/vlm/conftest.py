"""Tiny models of every family, made once a session."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.tiny_vlm import save_tiny_vlm
from vlm.loading import Loaded, load_model


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a family's tiny model, which is made when it is first asked for."""
    root = tmp_path_factory.mktemp("tiny_vlm")
    return cache(lambda name: save_tiny_vlm(name, root / name))


@pytest.fixture
def tiny(tiny_folder: Callable[[str], Path]) -> Callable[..., Loaded]:
    """Load a family's tiny model, fresh for each test."""
    return lambda name, **how: load_model(str(tiny_folder(name)), **how)
