"""What is trained of a CLIP, on what, and with which weights in the loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from transformers import CLIPModel

from palate.errors import UserError
from palate.training.held_out import hold_out
from rewards.data import Examples, collate
from rewards.freezing import part_of, trained_names
from rewards.judgements import Labels, Source
from rewards.learning import LearnedScorer
from rewards.losses import OBJECTIVES
from rewards.settings import DataConfig, ModelConfig
from rewards.trainable import Trainable, load_trainable
from tests.rewards.learning_runs import write_data, write_rankings, write_transformers_clip


@pytest.fixture(scope="module")
def hugging(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_transformers_clip(tmp_path_factory.mktemp("hugging"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("pairs") / "pairs.parquet", 8, ties=2)


def learner(trainable: Trainable, objective: str = "pickscore", **model: Any) -> LearnedScorer:
    return LearnedScorer(trainable, OBJECTIVES[objective], ModelConfig(**model), lr=1e-3)


# --- which weights ---------------------------------------------------------------------------------------------------


def names_of(model: Any) -> list[str]:
    return [name for name, _ in model.named_parameters()]


def test_open_clips_blocks_are_counted_from_the_end() -> None:
    """As open_clip's own lock does, which counts the projection of the image tower as a group of its own."""
    model = open_clip.create_model("ViT-S-32-alt", pretrained=None)
    for blocks in (0, 1, 3, None):
        model.requires_grad_(True)
        if blocks is not None:
            model.lock_image_tower(unlocked_groups=blocks + 1 if blocks else 0)
            model.lock_text_tower(unlocked_layers=blocks + 1 if blocks else 0)
        theirs = {name for name, p in model.named_parameters() if p.requires_grad and part_of(name) != "scale"}
        ours = trained_names(names_of(model), "image", blocks) | trained_names(names_of(model), "text", blocks)
        assert ours == theirs


def test_the_blocks_of_transformers(hugging: Path) -> None:
    names = names_of(CLIPModel.from_pretrained(hugging))
    found = trained_names(names, "image", 1)
    assert {n for n in found if "layers" not in n} == {
        "vision_model.post_layernorm.weight",
        "vision_model.post_layernorm.bias",
        "visual_projection.weight",
    }
    assert {n.split(".layers.")[1][0] for n in found if ".layers." in n} == {"2"}
    assert {part_of(n) for n in names} == {"image", "text", "scale"}
    with pytest.raises(UserError, match="the text tower has 3 blocks"):
        trained_names(names, "text", 4)


def test_a_tower_that_is_no_row_of_blocks_is_trained_whole_or_not_at_all() -> None:
    names = [f"visual.layer{k}.0.conv1.weight" for k in (1, 2)] + ["visual.attnpool.c_proj.weight", "logit_scale"]
    assert trained_names(names, "image", None) == set(names[:3]) and trained_names(names, "image", 0) == set()
    with pytest.raises(UserError, match="not one row of blocks"):
        trained_names(names, "image", 2)


def test_frozen_weights_need_no_gradient_and_parts_have_their_rates(folder: Path) -> None:
    method = learner(
        load_trainable(ModelConfig(path=str(folder))), image_blocks=1, text_blocks=0, scale_rate=10, image_rate=2
    )
    trained = {n for n, p in method.module().named_parameters() if p.requires_grad}
    assert not any("transformer.resblocks.0" in n or part_of(n.removeprefix("model.")) == "text" for n in trained)
    assert {"model.visual.proj", "model.logit_scale", "model.visual.transformer.resblocks.1.ln_1.weight"} <= trained
    groups = {(g["lr"], g.get("weight_decay")): {p.ndim for p in g["params"]} for g in method.parameter_groups()}
    assert groups == {(2e-3, None): {2}, (2e-3, 0.0): {1}, (1e-2, 0.0): {0}}


def test_a_rate_of_zero_freezes(folder: Path) -> None:
    method = learner(load_trainable(ModelConfig(path=str(folder))), scale_rate=0, text_rate=0)
    assert {part_of(n.removeprefix("model.")) for n, p in method.module().named_parameters() if p.requires_grad} == {
        "image"
    }


# --- scores ----------------------------------------------------------------------------------------------------------


def batch_of(trainable: Trainable, path: Path) -> tuple[Any, Any]:
    source = Source(DataConfig(path=str(path), held_out=0.0), "even", drops_ties=False)
    examples = Examples(source.training, source.kept, trainable.preprocess.geometry)
    items = [examples[k, 0] for k in range(len(examples))]
    tokenize = lambda prompts: ((found := trainable.tokenizer(prompts)).ids, found.mask)
    return collate(items, tokenize), source


def test_scores_are_the_librarys_own_logits(folder: Path, hugging: Path, data: Path) -> None:
    """open_clip's forward, and transformers' logits_per_image."""
    for path in (folder, hugging):
        trainable = load_trainable(ModelConfig(path=str(path)))
        batch, _ = batch_of(trainable, data)
        module = learner(trainable).module().eval()
        with torch.no_grad():
            found = module(batch.pixels, batch.ids, batch.attention, batch.ranking_of).value
            pixels = trainable.preprocess.normalise(batch.pixels)
            if path == folder:
                image, text, scale = trainable.model(pixels, batch.ids)[:3]
                table = scale * image @ text.T
            else:
                table = trainable.model(batch.ids, pixels, batch.attention).logits_per_image
        assert torch.allclose(found, table[torch.arange(len(found)), batch.ranking_of], atol=1e-5)


def test_the_scale_starts_where_it_is_told_and_stays_below_its_limit(folder: Path, data: Path) -> None:
    trainable = load_trainable(ModelConfig(path=str(folder)))
    batch, _ = batch_of(trainable, data)
    inputs = (batch.pixels, batch.ids, batch.attention, batch.ranking_of)
    with torch.no_grad():
        own = learner(trainable).module()(*inputs).value
        five = learner(trainable, scale=5.0).module()(*inputs).value
        capped = learner(trainable, scale=200.0, max_scale=50.0).module()(*inputs).value
    assert torch.allclose(five, own / 10, atol=1e-5) and torch.allclose(capped, own, atol=1e-4)  # its own is 50


def test_rankings_are_padded_and_told_apart(folder: Path, tmp_path: Path) -> None:
    trainable = load_trainable(ModelConfig(path=str(folder)))
    batch, source = batch_of(trainable, write_rankings(tmp_path, 3))
    assert batch.mask.sum(1).tolist() == [3, 4, 3] and batch.ranking_of.tolist() == [0] * 3 + [1] * 4 + [2] * 3
    assert batch.place[1].tolist() == [3, 4, 5, 6] and batch.place[2].tolist() == [7, 8, 9, 0]
    assert batch.preference[0, :3, :3].nan_to_num(-1).tolist() == [[-1, 1, 1], [0, -1, 0.5], [0, 0.5, -1]]
    assert batch.preference[0, 3].isnan().all() and batch.best[0].tolist() == [1, 0, 0, 0]
    assert source.training.comparisons(ties=True).tolist() == [3, 6, 3]
    assert source.training.comparisons(ties=False).tolist() == [2, 5, 2]


# --- judgements ------------------------------------------------------------------------------------------------------


def test_labels_of_tied_best_images() -> None:
    labels = Labels.of_scores([2, 1, 2])
    assert labels.best.tolist() == [0.5, 0, 0.5] and labels.preference[0, 2] == 0.5 and labels.preference[1, 0] == 0


def test_each_prompt_counts_once_and_held_out_prompts_are_apart(data: Path) -> None:
    config = DataConfig(path=str(data), held_out=0.5)
    source = Source(config, "prompt", drops_ties=False)
    prompts = source.training.prompts()
    assert source.held and not {prompts[k] for k in source.kept} & {prompts[k] for k in source.held}
    assert source.weights.mean() == pytest.approx(1)
    assert Source(config, "prompt", drops_ties=False).fingerprint == source.fingerprint


def test_objectives_without_ties_leave_them_out(data: Path) -> None:
    config = DataConfig(path=str(data), held_out=0.0)
    assert len(Source(config, "comparisons", drops_ties=False).kept) == 8
    assert len(Source(config, "comparisons", drops_ties=True).kept) == 6


def test_nothing_to_train_on_is_said(data: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'hpdv2'"):
        Source(DataConfig(path=str(data), format="hpd"), "even", drops_ties=False)
    ties = write_data(data.with_name("ties.parquet"), 4, ties=4)
    with pytest.raises(UserError, match="left to train on"):
        Source(DataConfig(path=str(ties), held_out=0.0), "comparisons", drops_ties=True)


def test_an_unreadable_image_ends_the_run_or_the_next_stands_in(tmp_path: Path) -> None:
    path = write_rankings(tmp_path, 3)
    (tmp_path / "1-0.png").write_bytes(b"broken")
    source = Source(DataConfig(path=str(path), held_out=0.0), "even", drops_ties=False)
    prepare = lambda picture: torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    with pytest.raises(UserError, match=r"Row 1 .*on_bad_row skip"):
        Examples(source.training, source.kept, prepare)[1, 0]
    skipping = Examples(source.training, source.kept, prepare, skip=True)
    assert skipping[1, 0].prompt == "prompt 2" and int(skipping.skipped) == 1


def test_whole_prompts_are_held_out_up_to_the_limit() -> None:
    prompts = [f"p{k % 10}" for k in range(40)]
    kept, held = hold_out(prompts, 0.5, 9)
    assert sorted(kept + held) == list(range(40)) and len(held) == 8
    assert not {prompts[k] for k in kept} & {prompts[k] for k in held}
    assert hold_out(prompts, 0.0, 9) == (list(range(40)), [])
    assert len(hold_out(["a"] * 3, 1.0, 9)[1]) == 0  # something is left to train on


# --- models that cannot be trained -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("", "--model.path is missing"),
        ("nowhere", "Unknown open_clip architecture 'nowhere'"),
        ("ViT-B-32:nothing", "neither a file nor a tag"),
        ("hf-hub:someone/something", "HF_HUB_OFFLINE"),
    ],
)
def test_a_model_that_is_none_is_said(path: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load_trainable(ModelConfig(path=path))


def test_a_folder_without_a_model_is_said(tmp_path: Path, hugging: Path) -> None:
    with pytest.raises(UserError, match="Is the folder a transformers model"):
        load_trainable(ModelConfig(path=str(tmp_path)))
    with pytest.raises(UserError, match="fit pad is for models of open_clip"):
        load_trainable(ModelConfig(path=str(hugging), fit="pad"))
