"""The store on disk: nothing is encoded twice, nothing broken is believed, several processes may write."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from palate.errors import UserError
from rewards import load_scorer, score_together
from rewards.cache import Cache, key
from tests.rewards.conftest import PROMPTS
from tests.rewards.counting import count
from tests.rewards.official import ARCHITECTURE


def test_entries_by_key(tmp_path) -> None:
    cache = Cache(tmp_path / "deep" / "folder")
    entries = {key("a", str(k)): bytes([k % 256]) * k for k in range(1200)}
    cache.put(entries)
    assert cache.get([*entries, key("b")]) == entries
    assert Cache(tmp_path / "deep" / "folder").get(list(entries)[:3]) == dict(list(entries.items())[:3])


def test_keys_tell_parts_apart() -> None:
    """Joined, ("ab", "c") and ("a", "bc") are the same text."""
    keys = [key("ab", "c"), key("a", "bc"), key("abc"), key("ab", "c", ""), key("\ud800")]
    assert len(set(keys)) == 5 and key("ab", "c") == keys[0]


def test_an_entry_that_changed_on_disk_is_missing(tmp_path) -> None:
    cache = Cache(tmp_path)
    cache.put({key("a"): b"first", key("b"): b"second"})
    with sqlite3.connect(cache.path) as raw:
        raw.execute("UPDATE entries SET value = ? WHERE key = ?", (b"fir5t", key("a")))
    assert cache.get([key("a"), key("b")]) == {key("b"): b"second"}
    cache.put({key("a"): b"again"})
    assert cache.get([key("a")]) == {key("a"): b"again"}


def test_a_broken_file_is_set_aside(tmp_path) -> None:
    (tmp_path / "rewards.sqlite").write_bytes(b"this is no database, but long enough to be taken for one" * 100)
    with pytest.warns(UserWarning, match="is broken .*begun anew"):
        cache = Cache(tmp_path)
    cache.put({key("a"): b"x"})
    assert cache.get([key("a")]) == {key("a"): b"x"}
    assert len(list(tmp_path.glob("*.broken-*"))) == 1


def test_a_file_that_breaks_under_way_is_set_aside(tmp_path) -> None:
    cache = Cache(tmp_path)
    cache.put({key(str(k)): bytes(500) for k in range(200)})
    size = cache.path.stat().st_size
    with cache.path.open("r+b") as file:
        file.write(b"\xff" * (size - 100))
    with pytest.warns(UserWarning, match="is broken"):
        found = cache.get([key(str(k)) for k in range(200)])
    assert found == {}
    cache.put({key("a"): b"x"})
    assert cache.get([key("a")]) == {key("a"): b"x"}


def test_a_folder_that_cannot_be_made_is_refused(tmp_path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be used.*Name a folder"):
        Cache(tmp_path / "file")


@pytest.mark.launch
def test_several_processes_write_at_once(tmp_path) -> None:
    """Four processes put 50 entries each in 10 transactions, all in one file; all are there."""
    code = textwrap.dedent(
        f"""
        import sys
        from rewards.cache import Cache, key
        cache = Cache({str(tmp_path)!r})
        for part in range(10):
            cache.put({{key(sys.argv[1], str(part * 5 + k)): sys.argv[1].encode() * 100 for k in range(5)}})
        """
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(n)]) for n in range(4)]
    assert [writer.wait() for writer in writers] == [0] * 4
    keys = {key(str(n), str(k)): str(n).encode() * 100 for n in range(4) for k in range(50)}
    assert Cache(tmp_path).get(keys) == keys


def _scorer(published, cache, **options):
    return load_scorer("hpsv2", source=str(published), architecture=ARCHITECTURE, device="cpu", cache=cache, **options)


def test_a_second_run_encodes_and_decodes_nothing(published, images, tmp_path, monkeypatch) -> None:
    prompts = [*PROMPTS, "word " * 90]
    fresh = _scorer(published, tmp_path)
    without = load_scorer("hpsv2", source=str(published), architecture=ARCHITECTURE, device="cpu").score(
        prompts, images
    )
    first = fresh.score(prompts, images)
    again = _scorer(published, tmp_path)
    counts = count(again)
    second = again.score(prompts, images)
    assert (counts.images, counts.texts) == (0, 0)
    assert np.array_equal(first.values, without.values) and np.array_equal(first.values, second.values)
    assert first.truncated == second.truncated == {4}
    one_more = again.score([*prompts, "new"], [*images, images[0]])
    assert (counts.images, counts.texts) == (0, 1) and np.array_equal(one_more.values[:5], first.values)


def test_everything_that_changes_a_vector_is_in_the_key(published, images, tmp_path) -> None:
    """Another preprocessing, other weights and another arithmetic find nothing."""
    _scorer(published, tmp_path).score(PROMPTS, images[:4])
    own = {"architecture": ARCHITECTURE, "device": "cpu", "cache": tmp_path}
    others = [
        load_scorer("hpsv2", source=str(published), antialias=False, **own),
        load_scorer("hpsv2", seed=1, **own),
        load_scorer("hpsv2", source=str(published), dtype="bfloat16", **own),
    ]
    expected_texts = [0, 4, 4]
    for scorer, texts in zip(others, expected_texts, strict=True):
        counts = count(scorer)
        scorer.score(PROMPTS, images[:4])
        assert (counts.images, counts.texts) == (4, texts)


def test_low_precision_survives_the_disk(published, images, tmp_path) -> None:
    first = _scorer(published, tmp_path, dtype="bfloat16").score(PROMPTS, images[:4])
    second = _scorer(published, tmp_path, dtype="bfloat16").score(PROMPTS, images[:4])
    assert np.array_equal(first.values, second.values) and first.dtype == "bfloat16"


def test_pairs_are_kept_too(published, images, tmp_path) -> None:
    name = f"imagereward:{published / 'ImageReward'}"
    first = load_scorer(name, device="cpu", cache=tmp_path).score(PROMPTS, images[:4])
    again = load_scorer(name, device="cpu", cache=tmp_path)
    again.answers = None  # nothing is asked any more
    second = score_together([again], PROMPTS, images[:4])[0]
    assert np.array_equal(first.values, second.values) and first.truncated == second.truncated
