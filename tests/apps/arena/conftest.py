"""An open arena for tests that need no settings of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.apps.arena.small import Small, small_arena


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Small]:
    """An arena of images without limits in the way."""
    with small_arena(tmp_path / "arena") as opened:
        yield opened
