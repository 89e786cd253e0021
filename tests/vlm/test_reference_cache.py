"""Cached reference scores are those computed online, are never another run's, and survive kills and damage."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from palate.errors import UserError
from palate.records import Media
from palate.tensor_store import weights_hash
from tests.t2i.runs import assert_same, largest_difference, rows
from tests.tiny_vlm import picture
from tests.vlm.runs import noise_pairs, run_in_process, weights, write
from vlm import reference_fill
from vlm.data import Known
from vlm.loading import Loaded
from vlm.reference_cache import ReferenceCache, fingerprint_of, processor_hash

SIGNS = ("accuracy", "displacement", "eval/accuracy")
"""What rounding decides while policy and reference are the same."""
WAYS = {
    "dpo, held out": {"data.held_out": 0.3, "eval.every": 2},
    "mdpo, two draws": {"objective.recipe": "mdpo", "reference.draws": 2, "train.steps": 8, "train.batch_size": 3},
    "weighed tokens, full": {
        "objective.recipe": "rlhf_v",
        "model.language.tuning": "full",
        "model.tower.tuning": "full",
        "optim.lr": 1e-4,
    },
    "a soft objective": {"objective.recipe": "custom", "objective.terms": [{"objective": "ipo"}, {"objective": "sft"}]},
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("data") / "pairs.parquet", noise_pairs(12))


@pytest.mark.parametrize("way", WAYS)
def test_cached_is_online(way: str, tiny_folder: Callable[[str], Path], pairs: Path, tmp_path: Path):
    """Without a random corruption the draws are the same too, and weights agree to rounding; with one, draw by draw."""
    common = {"model.path": str(tiny_folder("llava")), "data.path": str(pairs), "checkpoint.every": 0, **WAYS[way]}
    common["optim.eps"] = 1e-3  # rounding stays rounding: Adam's 1e-8 blows it up to whole steps
    run_in_process({**common, "out": str(tmp_path / "cached"), "reference.kind": "cached"})
    draws = {name: v for name, v in common.items() if not name.startswith("reference.")}
    if "mdpo" in way:  # visit 2 takes draw 0 again; what is compared are the first two visits, 24 pairs of 3 a step
        draws["train.steps"] = common["train.steps"]
    run_in_process({**draws, "out": str(tmp_path / "online")})
    for kind in ("train", "eval"):
        for mine, theirs in zip(rows(tmp_path / "cached", kind), rows(tmp_path / "online", kind), strict=True):
            for name in mine.keys() - {"time", "items_per_second", "kind", *SIGNS}:
                assert mine[name] == pytest.approx(theirs[name], rel=1e-3, abs=2e-5), (kind, mine["step"], name)
    difference = largest_difference(weights(tmp_path / "cached" / "model"), weights(tmp_path / "online" / "model"))
    print(f"cached against online: {difference:.1e}")
    assert difference < 1e-4


def test_a_filled_cache_is_not_computed_again(
    tiny_folder: Callable[[str], Path], pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A second run, with another learning rate and in another folder, reads it; with another max_length it does not."""
    scored: list[int] = []
    score = reference_fill._score
    monkeypatch.setattr(reference_fill, "_score", lambda s, batch: scored.append(len(batch)) or score(s, batch))
    common = {
        "model.path": str(tiny_folder("llava")),
        "data.path": str(pairs),
        "reference.kind": "cached",
        "reference.folder": str(tmp_path / "shared"),
        "train.steps": 1,
    }
    for number, (settings, computed) in enumerate([({}, 12), ({"optim.lr": 1e-4}, 0), ({"data.max_length": 300}, 12)]):
        scored.clear()
        run_in_process({**common, **settings, "out": str(tmp_path / str(number))})
        assert sum(scored) == computed
    assert len(list((tmp_path / "shared").iterdir())) == 2


def test_a_kill_loses_one_part_and_damage_one_file(
    tiny_folder: Callable[[str], Path], pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.setattr(reference_fill, "PART", 4)
    scored: list[int] = []
    score = reference_fill._score

    def killed(scores, batch):
        scored.append(len(batch))
        if sum(scored) > 8:
            raise KeyboardInterrupt
        return score(scores, batch)

    settings = {"model.path": str(tiny_folder("llava")), "data.path": str(pairs), "reference.kind": "cached",
                "reference.folder": str(tmp_path / "cache"), "train.steps": 1}  # fmt: skip
    monkeypatch.setattr(reference_fill, "_score", killed)
    with pytest.raises(KeyboardInterrupt):
        run_in_process({**settings, "out": str(tmp_path / "a")})
    (folder,) = (tmp_path / "cache").iterdir()
    assert len(list(folder.glob("*.safetensors"))) == 2 and not list(folder.glob("complete-*"))

    scored.clear()
    monkeypatch.setattr(reference_fill, "_score", lambda s, batch: scored.append(len(batch)) or score(s, batch))
    run_in_process({**settings, "out": str(tmp_path / "b")})
    assert sum(scored) == 4 and len(list(folder.glob("*.safetensors"))) == 3
    whole = weights(tmp_path / "b" / "model")

    parts = sorted(folder.glob("*.safetensors"))
    parts[0].write_bytes(parts[0].read_bytes()[:-4])
    parts[1].write_bytes(parts[2].read_bytes())  # another part's content under this name
    scored.clear()
    capsys.readouterr()
    run_in_process({**settings, "out": str(tmp_path / "c")})
    assert sum(scored) == 8 and "had 2 damaged files" in capsys.readouterr().out
    assert_same(weights(tmp_path / "c" / "model"), whole)


def test_a_changed_image_is_not_scored_with_the_old_one(tiny_folder: Callable[[str], Path], tmp_path: Path):
    """Names and texts stay, the file's bytes change: the pair's id does, and the cache says so."""
    import json

    for number in range(3):
        picture(number).save(tmp_path / f"{number}.png")
    turns = lambda said: [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": said}]
    data = [
        {"image": f"{n}.png", "conversations": turns(f"red {n}"), "rejected_conversations": turns("blue")}
        for n in range(3)
    ]
    (tmp_path / "povid.json").write_text(json.dumps(data))
    settings = {"model.path": str(tiny_folder("llava")), "data.path": str(tmp_path / "povid.json"),
                "reference.kind": "cached", "reference.folder": str(tmp_path / "cache"), "train.steps": 2}  # fmt: skip
    run_in_process({**settings, "out": str(tmp_path / "a")})
    picture(9).save(tmp_path / "1.png")
    with pytest.raises(UserError, match=r"has no scores of the pair .*Remove .*complete-"):
        run_in_process({**settings, "out": str(tmp_path / "b")})
    for marker in (tmp_path / "cache").rglob("complete-*.json"):
        marker.unlink()
    run_in_process({**settings, "out": str(tmp_path / "c")})


def known(seed: int, lengths: tuple[int, int], corrupted: int = 0) -> Known:
    draw = lambda n: torch.randn(n, generator=torch.Generator().manual_seed(seed + n))
    return Known((draw(lengths[0]), draw(lengths[1])), draw(corrupted) if corrupted else None)


def test_what_is_added_is_read_bit_for_bit(tmp_path: Path):
    cache = ReferenceCache(tmp_path, {"weights": "a"})
    held = {"x": known(0, (3, 5)), "y": known(1, (1, 2), corrupted=4)}
    cache.add(held)
    cache.add({"z": known(2, (2, 2))})
    assert not len(cache) and cache.load() == 0 and set(cache) == {"x", "y", "z"}
    for name, scores in {**held, "z": known(2, (2, 2))}.items():
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(cache[name].answers, scores.answers, strict=True))
    assert cache["x"].corrupted is None and torch.equal(cache["y"].corrupted, held["y"].corrupted)  # type: ignore[arg-type]
    other = ReferenceCache(tmp_path, {"weights": "b"})
    assert other.load() == 0 and not len(other)
    with pytest.raises(UserError, match="has no scores of the pair x"):
        other["x"]


def test_foreign_files_are_thrown_out(tmp_path: Path):
    cache = ReferenceCache(tmp_path, {"weights": "a"})
    cache.add({"x": known(0, (3, 5))})
    (part,) = cache.folder.glob("*.safetensors")
    shutil.copy(part, cache.folder / "renamed.safetensors")
    save_file({"other": torch.zeros(2)}, cache.folder / "foreign.safetensors")
    (cache.folder / "text.safetensors").write_text("no tensors")
    assert cache.load() == 3 and set(cache) == {"x"} and list(cache.folder.glob("*.safetensors")) == [part]


def test_everything_that_changes_scores_changes_the_fingerprint(tiny: Callable[..., Loaded]):
    one, other = tiny("llava"), tiny("llava")
    assert weights_hash([("", one.model)]) == weights_hash([("", other.model)])
    assert fingerprint_of(one.model, one.processor, {"a": 1}) != fingerprint_of(one.model, one.processor, {"a": 2})
    with torch.no_grad():
        other.model.lm_head.weight[0, 0] += 1e-6
    assert weights_hash([("", one.model)]) != weights_hash([("", other.model)])
    assert weights_hash([("", tiny("llava", dtype="bf16").model)]) != weights_hash([("", one.model)])
    assert processor_hash(one.processor) == processor_hash(tiny("llava").processor)
    other.processor.chat_template += " "
    assert processor_hash(one.processor) != processor_hash(other.processor)


def test_the_pair_is_known_by_its_images_too(tmp_path: Path):
    first, *_ = noise_pairs(2)
    assert replace(first, images=(Media.image(picture(77)),)).id != first.id
