"""ImageReward on a random checkpoint under the official names, against BLIP written out in plain torch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from palate.errors import UserError
from rewards import load_scorer
from rewards.imagereward import rename
from tests.rewards.official import WORDS, imagereward_state, save_imagereward
from tests.rewards.test_clip_scorers import _crop

PROMPTS = ["a red circle", "two blue squares", "a green triangle", "a circle", " ".join(["a red circle"] * 20)]
TEXT_HEADS = 4  # as med_config.json says


def _linear(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def _norm(state: dict[str, Tensor], name: str, x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


def _attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(0, 1) for x in (q, k, v))
    found = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).softmax(-1) @ v
    return found.transpose(0, 1).flatten(1)


def _see(state: dict[str, Tensor], pixels: Tensor) -> Tensor:
    """BLIP's vision transformer (models/vit.py): pre-norm, joint qkv, epsilon 1e-6. Returns (tokens, D)."""
    eye = "blip.visual_encoder"
    patches = F.conv2d(pixels, state[f"{eye}.patch_embed.proj.weight"], state[f"{eye}.patch_embed.proj.bias"], stride=8)
    x = torch.cat([state[f"{eye}.cls_token"][0], patches[0].flatten(1).T]) + state[f"{eye}.pos_embed"][0]
    for layer in range(2):
        block = f"{eye}.blocks.{layer}"
        q, k, v = _linear(state, f"{block}.attn.qkv", _norm(state, f"{block}.norm1", x, 1e-6)).chunk(3, -1)
        x = x + _linear(state, f"{block}.attn.proj", _attend(q, k, v, heads=1))
        hidden = F.gelu(_linear(state, f"{block}.mlp.fc1", _norm(state, f"{block}.norm2", x, 1e-6)))
        x = x + _linear(state, f"{block}.mlp.fc2", hidden)
    return _norm(state, f"{eye}.norm", x, 1e-6)


def _read(state: dict[str, Tensor], ids: list[int], seen: Tensor) -> Tensor:
    """BLIP's BERT (models/med.py) with cross-attention after self-attention, post-norm. Padding, which is masked, is left
    out instead. Returns the first token's vector."""
    word = "blip.text_encoder"
    x = state[f"{word}.embeddings.word_embeddings.weight"][ids]
    x = x + state[f"{word}.embeddings.position_embeddings.weight"][: len(ids)]
    x = _norm(state, f"{word}.embeddings.LayerNorm", x, 1e-12)
    for layer in range(2):
        block = f"{word}.encoder.layer.{layer}"
        for kind, source in (("attention", None), ("crossattention", seen)):
            other = x if source is None else source
            q, k, v = (
                _linear(state, f"{block}.{kind}.self.{part}", y)
                for part, y in (("query", x), ("key", other), ("value", other))
            )
            out = _linear(state, f"{block}.{kind}.output.dense", _attend(q, k, v, TEXT_HEADS))
            x = _norm(state, f"{block}.{kind}.output.LayerNorm", x + out, 1e-12)
        hidden = F.gelu(_linear(state, f"{block}.intermediate.dense", x))
        x = _norm(state, f"{block}.output.LayerNorm", x + _linear(state, f"{block}.output.dense", hidden), 1e-12)
    return x[0]


def _ids(prompt: str) -> list[int]:
    """[CLS], words of the little vocabulary (squares = square + ##s), [SEP]; 35 at most, [SEP] kept."""
    pieces = []
    for name in prompt.split():
        pieces += [name] if name in WORDS else [name[:-1], "##s"] if name[:-1] in WORDS else ["[UNK]"]
    return [WORDS.index(piece) for piece in ["[CLS]", *pieces[:33], "[SEP]"]]


def _by_hand(state: dict[str, Tensor], prompt: str, image) -> float:
    x = _read(state, _ids(prompt), _see(state, _crop(image, 24, lambda rest: round(rest / 2))))
    for number in (0, 2, 4, 6, 7):
        x = _linear(state, f"mlp.layers.{number}", x)
    return (float(x[0]) - 0.16717362830052426) / 1.0333394966054072


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return imagereward_state()


@pytest.fixture(scope="module")
def scorer(published):
    return load_scorer(f"imagereward:{published / 'ImageReward'}", device="cpu", batch_size=3)


def test_scores_equal_blip_written_out(scorer, state, images) -> None:
    golden = [_by_hand(state, prompt, image) for prompt, image in zip(PROMPTS, images, strict=True)]
    batch = scorer.score(PROMPTS, images)
    assert batch.values == pytest.approx(golden, abs=2e-4)
    assert np.ptp(golden) > 0.1
    assert (batch.scorer, batch.unit, batch.truncated) == ("imagereward", "reward", {4})


def test_every_pair_is_judged_once(scorer, images) -> None:
    """5 rows over 2 prompts and 3 images hold 4 pairs; the images are looked at 3 at a time."""
    asked = []
    real = scorer.blip.judge
    scorer.blip.judge = lambda seen, ids, mask: (asked.append(len(seen)), real(seen, ids, mask))[1]
    try:
        rows = [(0, 0), (1, 0), (0, 1), (0, 0), (1, 2)]
        values = scorer.score([PROMPTS[p] for p, _ in rows], [images[i] for _, i in rows]).values
    finally:
        del scorer.blip.judge
    assert sum(asked) == 4 and values[0] == values[3]
    alone = [scorer.score([PROMPTS[p]], [images[i]]).values[0] for p, i in rows]
    assert values == pytest.approx(alone, abs=1e-5)


def test_a_matrix_reads_every_pair(scorer, state, images) -> None:
    matrix = scorer.score_matrix(PROMPTS[:2], images[:2]).values
    assert matrix == pytest.approx(
        np.array([[_by_hand(state, p, i) for i in images[:2]] for p in PROMPTS[:2]]), abs=2e-4
    )


def test_gradients_reach_the_pixels(scorer, images) -> None:
    levels = np.stack([np.asarray(image.resize((30, 26))) for image in images[:2]])
    pixels = (torch.from_numpy(levels).permute(0, 3, 1, 2) / 255).requires_grad_()
    scores = scorer.score_tensor(PROMPTS[:2], pixels)
    scores.sum().backward()
    assert scores.detach().numpy() == pytest.approx(scorer.score(PROMPTS[:2], list(levels)).values, abs=1e-3)
    assert (pixels.grad.flatten(1).norm(dim=1) > 0).all()


def test_renaming_loses_nothing(state) -> None:
    """Every tensor of the two encoders arrives under one name; the projections, the head and the positions stay behind."""
    vision, text = rename(state)
    given = [n for n in state if "_encoder." in n and not n.endswith("position_ids")]
    assert len(vision) + len(text) == len(given)
    assert "encoder.layers.1.self_attn.projection.bias" in vision and "embeddings.class_embedding" in vision
    assert "encoder.layer.0.crossattention.self.key.weight" in text


def test_low_precision_stays_near(published, scorer, images) -> None:
    low = load_scorer(f"imagereward:{published / 'ImageReward'}", device="cpu", dtype="bfloat16").score(PROMPTS, images)
    assert low.dtype == "bfloat16"
    assert low.values == pytest.approx(scorer.score(PROMPTS, images).values, abs=0.15)


def test_broken_checkpoints_say_what_is_missing(tmp_path) -> None:
    state = save_imagereward(tmp_path)
    for name, message in (
        ("mlp.layers.7.bias", "does not hold the five layers mlp.layers"),
        ("blip.visual_encoder.blocks.1.norm2.bias", "it lacks encoder.layers.1.layer_norm2.bias"),
        ("blip.visual_encoder.pos_embed", "is no ImageReward checkpoint: it lacks 'embeddings.position_embedding'"),
        ("blip.text_encoder.encoder.layer.0.crossattention.self.key.weight", "it lacks encoder.layer.0.crossattention"),
    ):
        torch.save({n: t for n, t in state.items() if n != name}, tmp_path / "ImageReward.pt")
        with pytest.raises(UserError, match=message):
            load_scorer(f"imagereward:{tmp_path}", device="cpu")
    with pytest.raises(UserError, match="There is no file"):
        load_scorer("imagereward:/nowhere", device="cpu")
    (tmp_path / "vocab.txt").unlink()
    with pytest.raises(UserError, match="bert-base-uncased is neither a local path"):
        load_scorer(f"imagereward:{tmp_path}", device="cpu")
