"""ImageReward (2304.05977): a BLIP that reads prompt and image together, and a head, on transformers' BLIP.

The official ImageReward.pt is a flat state dict under BLIP's names. It maps onto BlipVisionModel and BlipTextModel by
renaming alone: `rename` is the table. Sizes are read off the tensors, so that a smaller model loads as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from palate.errors import UserError
from palate.hub import explain_hub_error
from rewards.aesthetic import Linear, read_layers
from rewards.cache import Cache
from rewards.clip_scorers import scorer_name
from rewards.devices import Dtype, Portions, find_device, find_dtype, torch_dtype
from rewards.geometry import Geometry
from rewards.pairs import Answer, PairScorer
from rewards.preprocess import Preprocess
from rewards.similarity import check_tensor
from rewards.text import TransformersTokenizer
from rewards.weights import assign, content_hash, read_state, shared

HUB, FILE, CONFIG = "THUDM/ImageReward", "ImageReward.pt", "med_config.json"
TOKENIZER_HUB = "google-bert/bert-base-uncased"
MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the raw answers, in their code
LENGTH = 35  # tokens, padded
_HEAD_WIDTH = 64  # of an attention head, in every BLIP
_VISION = (
    (r"cls_token", "embeddings.class_embedding"),
    (r"pos_embed", "embeddings.position_embedding"),
    (r"patch_embed\.proj", "embeddings.patch_embedding"),
    (r"blocks\.(\d+)\.norm(\d)", r"encoder.layers.\1.layer_norm\2"),
    (r"blocks\.(\d+)\.attn\.qkv", r"encoder.layers.\1.self_attn.qkv"),
    (r"blocks\.(\d+)\.attn\.proj", r"encoder.layers.\1.self_attn.projection"),
    (r"blocks\.(\d+)\.mlp", r"encoder.layers.\1.mlp"),
    (r"norm", "post_layernorm"),
)


class ImageRewardScorer(PairScorer):
    """ImageReward as a `Scorer`. The unit is the deviation of its training data's rewards: about -2 to 2."""

    name, unit = "imagereward", "reward"

    def __init__(self, blip: Blip, name: str, batch_size: int, cache: Cache | None) -> None:
        self.name, self.blip, self.batch_size, self.cache = name, blip, batch_size, cache
        self.weights, self.dtype = blip.weights, blip.dtype
        self.preprocess, self.reads = blip.preprocess.version, blip.tokenizer.version
        self._images, self._pairs = Portions(batch_size), Portions(batch_size)

    @property
    def prepare(self) -> Callable[..., Any]:
        return self.blip.preprocess.geometry

    def answers(self, inputs: list[Any], of: Sequence[int], prompts: Sequence[str]) -> list[Answer]:
        blip, which = self.blip, torch.tensor(of)
        pixels = torch.stack(inputs)
        tokens = blip.tokenizer(prompts)
        with torch.inference_mode():
            seen = self._images.run(lambda where: blip.look(blip.normalised(pixels[where])), len(pixels))
            values = self._pairs.run(
                lambda where: blip.judge(
                    seen[which[where].to(seen.device)], tokens.ids[where], tokens.mask[where]
                ).cpu(),
                len(of),
            )
        return [Answer(float(value), truncated=bool(cut)) for value, cut in zip(values, tokens.truncated, strict=True)]

    def score_tensor(self, prompts: Sequence[str], images: Tensor) -> Tensor:
        check_tensor(prompts, images)
        tokens = self.blip.tokenizer(prompts)
        pixels = self.blip.preprocess.of_tensor(images.to(self.blip.device, torch.float32))
        return self.blip.judge(self.blip.look(pixels), tokens.ids, tokens.mask).float()


class Blip:
    """The two encoders and the head. `look` and `judge` are differentiable."""

    def __init__(
        self, vision: Any, text: Any, head: Linear, tokenizer: Any, size: int, weights: str, dtype: Dtype
    ) -> None:
        self._vision, self._text, self._head = vision, text, head
        self.tokenizer = TransformersTokenizer(tokenizer, LENGTH, pad_to_length=True)
        self.preprocess = Preprocess(Geometry(size, size))
        self.weights, self.dtype, self.device = weights, dtype, vision.device

    def normalised(self, pixels: Tensor) -> Tensor:
        """Return (B, 3, H, W) normalised, of what the geometry makes."""
        return self.preprocess.normalise(pixels.to(self.device))

    def look(self, pixels: Tensor) -> Tensor:
        """Return (B, patches + 1, D) of normalised pixels (B, 3, H, W)."""
        return self._vision(pixel_values=pixels.to(self.device, torch_dtype(self.dtype))).last_hidden_state

    def judge(self, seen: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Return (B,) rewards in float64 of what was seen and tokens (B, T)."""
        read = self._text(
            input_ids=ids.to(self.device),
            attention_mask=mask.to(self.device),
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=self.device),
        )
        first = read.last_hidden_state[:, 0].float()
        return (self._head(first.double() if self.device.type != "mps" else first) - MEAN) / STD


def load(
    source: str | None = None,
    *,
    tokenizer: str | None = None,
    dtype: Dtype | None = None,
    device: str | None = None,
    batch_size: int = 64,
    cache: str | Path | None = None,
) -> ImageRewardScorer:
    """Return ImageReward.

    source: ImageReward.pt, or the folder that holds it, med_config.json and perhaps a tokenizer; None is the hub's.
    tokenizer: folder or hub id of bert-base-uncased; None takes it from the source's folder, or from the hub.
    """
    file, config = _files(source)
    where = find_device(device)
    arithmetic = find_dtype(dtype, where)
    settings = _settings(config)
    words = _tokenizer(tokenizer, file.parent)
    weights = content_hash(["imagereward", settings, words.get_vocab()], [file])
    key = ("imagereward", weights, str(where), arithmetic)
    blip = shared(key, lambda: _make(file, settings, words, weights, arithmetic, where))
    name = scorer_name("imagereward", source, FILE)
    return ImageRewardScorer(blip, name, batch_size, Cache(cache) if cache else None)


def rename(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the state dicts of BlipVisionModel and BlipTextModel out of the official one; the head is left out."""
    vision: dict[str, Tensor] = {}
    text: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.startswith("blip.visual_encoder."):
            part = name.removeprefix("blip.visual_encoder.")
            for old, new in _VISION:
                if re.match(old, part):
                    part = re.sub(f"^{old}", new, part)
                    break
            vision[part] = tensor
        elif name.startswith("blip.text_encoder.") and not name.endswith("position_ids"):
            text[name.removeprefix("blip.text_encoder.")] = tensor
    return vision, text


def _make(
    file: Path, settings: Mapping[str, Any], tokenizer: Any, weights: str, dtype: Dtype, device: torch.device
) -> Blip:
    from accelerate import init_empty_weights
    from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

    state = read_state(file)
    head = read_layers(state, "mlp.layers.", str(file))
    seen, read = rename(state)
    try:
        patches, width = seen["embeddings.position_embedding"].shape[1:]
        patch = seen["embeddings.patch_embedding.weight"].shape[-1]
        size = round((patches - 1) ** 0.5) * patch
        vocabulary, hidden = read["embeddings.word_embeddings.weight"].shape
        vision_config = BlipVisionConfig(
            hidden_size=width,
            intermediate_size=seen["encoder.layers.0.mlp.fc1.weight"].shape[0],
            num_hidden_layers=_depth(seen, r"encoder\.layers\.(\d+)\."),
            num_attention_heads=max(width // _HEAD_WIDTH, 1),
            image_size=size,
            patch_size=patch,
            layer_norm_eps=1e-6,  # as in BLIP's own vision transformer; transformers' default is another
        )
        text_config = BlipTextConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            encoder_hidden_size=width,
            intermediate_size=read["encoder.layer.0.intermediate.dense.weight"].shape[0],
            num_hidden_layers=_depth(read, r"encoder\.layer\.(\d+)\."),
            num_attention_heads=int(settings.get("num_attention_heads") or max(hidden // _HEAD_WIDTH, 1)),
            max_position_embeddings=read["embeddings.position_embeddings.weight"].shape[0],
            layer_norm_eps=float(settings.get("layer_norm_eps") or 1e-12),
            bos_token_id=None,
            sep_token_id=None,
            attn_implementation="eager",
        )
    except (KeyError, ValueError) as error:
        raise UserError(f"{file} is no ImageReward checkpoint: it lacks {error}.") from None
    with init_empty_weights():  # buffers stay real: positions are computed, not loaded
        vision, text = BlipVisionModel(vision_config), BlipTextModel(text_config, add_pooling_layer=False)
    for module, part, name in ((vision, seen, "image encoder"), (text, read, "text encoder")):
        assign(module, part, f"{file.name}'s {name}")
        module.to(device=device, dtype=torch_dtype(dtype)).eval().requires_grad_(False)
    return Blip(vision, text, head, tokenizer, size, weights, dtype)


def _depth(state: Mapping[str, Tensor], pattern: str) -> int:
    return 1 + max(int(found[1]) for name in state if (found := re.match(pattern, name)))


def _files(source: str | None) -> tuple[Path, Path]:
    """Return the checkpoint and the path of its med_config.json, which need not exist."""
    if source is None:
        from huggingface_hub import hf_hub_download

        try:
            return Path(hf_hub_download(HUB, FILE)), Path(hf_hub_download(HUB, CONFIG))
        except Exception as error:  # explain_hub_error tells them apart
            raise explain_hub_error(error, "model", f"{HUB} ({FILE})") from error
    path = Path(source) / FILE if Path(source).is_dir() else Path(source)
    if not path.is_file():
        raise UserError(f"There is no file {path}. Give the official {FILE}, or the folder that holds it.")
    return path, path.with_name(CONFIG)


def _settings(config: Path) -> dict[str, Any]:
    """Return what the tensors' shapes do not tell."""
    from rewards.transformers_clip import read_json

    found = read_json(config) if config.is_file() else {}
    return {name: found[name] for name in ("num_attention_heads", "layer_norm_eps") if name in found}


def _tokenizer(given: str | None, folder: Path) -> Any:
    """Return BERT's tokenizer. BLIP adds two tokens to it, which no prompt contains."""
    from transformers import AutoTokenizer, BertTokenizer

    beside = any((folder / name).is_file() for name in ("vocab.txt", "tokenizer.json"))
    source = given or (str(folder) if beside else TOKENIZER_HUB)
    only_words = (Path(source) / "vocab.txt").is_file() and not (Path(source) / "tokenizer.json").is_file()
    try:
        return (BertTokenizer if only_words else AutoTokenizer).from_pretrained(source)
    except Exception as error:  # explain_hub_error tells them apart
        raise explain_hub_error(error, "model", source) from error
