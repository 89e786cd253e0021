"""open_clip models as towers, and as scorers of similarity.

A plain CLIP is made without weights and given those of the file, mapped into memory; drawing random weights first, as
open_clip.create_model does, takes ten times as long as all the rest. Other kinds (SigLIP, CoCa, timm towers) go its way.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import open_clip
import torch
from open_clip.transform import PreprocessCfg, merge_preprocess_dict

from palate.errors import UserError
from palate.hub import explain_hub_error, split_revision
from rewards.cache import Cache
from rewards.devices import Dtype, find_device, find_dtype, torch_dtype
from rewards.loading import OPEN_CLIP_CONFIG
from rewards.preprocess import of_open_clip
from rewards.similarity import FORMULAS, ClipScorer, find_formula
from rewards.text import OpenClipTokenizer
from rewards.towers import Embedder, Towers
from rewards.weights import Loaded, assign, content_hash, read_state, shared

Convention = Literal["cosine", "logits", "original", "torchmetrics"]
UNITS: dict[str, str] = {name: formula.unit for name, formula in FORMULAS.items()}
OpenClipScorer = ClipScorer
_PRECISION: dict[str, str] = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
# In open_clip's own order of preference.
_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")


def load(
    source: str | None = None,
    *,
    pretrained: str | Path | None = None,
    seed: int | None = None,
    convention: Convention = "cosine",
    dtype: Dtype | None = None,
    device: str | None = None,
    batch_size: int = 64,
    cache: str | Path | None = None,
    name: str | None = None,
) -> ClipScorer:
    """Return an open_clip model as a scorer.

    source, pretrained, seed, dtype, device: see `load_towers`.
    convention: a name of `rewards.similarity.FORMULAS`.
    batch_size: images, and prompts, encoded at once.
    cache: folder that keeps embeddings; None keeps none.
    name: how the scorer calls itself; None makes it from the source.
    """
    formula, kept = find_formula(convention), Cache(cache) if cache else None
    towers = load_towers(source, pretrained=pretrained, seed=seed, dtype=dtype, device=device)
    return ClipScorer(Embedder(towers, batch_size, kept), name or f"open_clip:{towers.label}", formula)


def load_towers(
    source: str | None = None,
    *,
    pretrained: str | Path | None = None,
    seed: int | None = None,
    dtype: str | None = None,
    device: str | None = None,
) -> Towers:
    """Return an open_clip model's towers, loaded once in a process.

    Args:
        source: what to load:
            - an architecture that open_clip knows, such as "ViT-B-32", with `pretrained`; "ViT-B-32:TAG" names both;
            - a folder with open_clip_config.json and weights ("local-dir:FOLDER" is the same);
            - "hf-hub:owner/name", also "hf-hub:owner/name@revision".
        pretrained: with an architecture, a checkpoint file or one of open_clip's tags for the architecture.
        seed: random weights drawn from this seed instead of a checkpoint; for tests.
        dtype: None is float32 on a CPU and bfloat16 on a GPU. Vectors are normalised and compared in float32 or more.
        device: None takes cuda, then mps, then cpu.
    """
    if not source:
        raise UserError("Which open_clip model? Give source='ViT-B-32', a folder, or 'hf-hub:owner/name'.")
    where = find_device(device)
    arithmetic = find_dtype(dtype, where)
    found = _find(source, pretrained, weightless=seed is not None)
    weights = content_hash([found.config, seed], found.files)
    key = ("open_clip", weights, found.label, str(where), arithmetic)
    loaded = shared(key, lambda: _load(found, seed, arithmetic, where))
    model = loaded.model
    bias = getattr(model, "logit_bias", None)
    return Towers(
        label=found.label,
        loaded=loaded,
        encode_image=model.encode_image,
        encode_text=lambda tokens: model.encode_text(tokens.ids),
        preprocess=of_open_clip(open_clip.get_model_preprocess_cfg(model)),
        scale=float(model.logit_scale.detach().double().exp()),
        bias=0.0 if bias is None else float(bias.detach().double()),
        weights=weights,
        dtype=arithmetic,
        device=where,
    )


@dataclass(frozen=True)
class _Found:
    """What open_clip is to load, and the files that decide its scores."""

    label: str
    architecture: str  # a name that open_clip knows, or local-dir:FOLDER
    config: Mapping[str, Any]  # of the model
    preprocess: Mapping[str, Any]  # what the source says of it, for open_clip's settings
    checkpoint: Path | None = None
    pretrained: str | None = None  # a tag or a file, for a name
    quick_gelu: bool = False
    files: tuple[Path, ...] = ()


def _load(found: _Found, seed: int | None, dtype: Dtype, device: torch.device) -> Loaded:
    try:
        if seed is None and found.checkpoint is not None and _is_plain(found.config):
            model = _mapped(found, found.checkpoint, dtype, device)
        else:
            model = _created(found, seed, dtype, device)
        tokenizer = open_clip.get_tokenizer(found.architecture)
    except UserError:
        raise
    except Exception as error:  # torch, safetensors and pickle each have their own for a bad file
        raise UserError(
            f"open_clip cannot load {found.label}"
            f"{f' with the weights {found.pretrained}' if found.pretrained else ''}: {error}. "
            "Check that the checkpoint is whole and belongs to this architecture."
        ) from error
    length = open_clip.get_model_tokenize_cfg(model).get("context_length") or tokenizer.context_length
    return Loaded(model.eval().requires_grad_(False), OpenClipTokenizer(tokenizer, length))


def _is_plain(config: Mapping[str, Any]) -> bool:
    """Return whether a configuration is of the class CLIP with towers of open_clip's own."""
    foreign = ("timm_model_name" in config["vision_cfg"], "hf_model_name" in config["text_cfg"])
    return not (config.get("custom_text") or "multimodal_cfg" in config or any(foreign))


def _mapped(found: _Found, checkpoint: Path, dtype: Dtype, device: torch.device) -> Any:
    """Return a plain CLIP that holds the checkpoint's own tensors."""
    from accelerate import init_empty_weights

    settings = {name: value for name, value in found.config.items() if name != "custom_text"}
    settings["quick_gelu"] = found.quick_gelu or settings.get("quick_gelu", False)
    with init_empty_weights():  # buffers stay real: the causal mask is computed, not loaded
        model = open_clip.CLIP(**settings, cast_dtype=None if dtype == "float32" else torch_dtype(dtype))
    state = read_state(checkpoint)
    if "logit_scale" in state:  # saved as (1,) by some, as () by others
        state["logit_scale"] = state["logit_scale"].reshape(model.logit_scale.shape)
    assign(model, state, found.label)
    model.to(device=device, dtype=torch.float32)
    if dtype != "float32":
        open_clip.convert_weights_to_lp(model, torch_dtype(dtype))  # norms stay in float32
    described = merge_preprocess_dict(asdict(PreprocessCfg()), dict(found.preprocess))
    open_clip.set_model_preprocess_cfg(model, described | {"size": model.visual.image_size})
    return model


def _created(found: _Found, seed: int | None, dtype: Dtype, device: torch.device) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed or 0)
        return open_clip.create_model(
            found.architecture,
            pretrained=found.pretrained,
            load_weights=seed is None,
            require_pretrained=seed is None,
            pretrained_text=False,
            force_quick_gelu=found.quick_gelu,
            precision=_PRECISION[dtype],
            device=device,
        )


def _find(source: str, pretrained: str | Path | None, weightless: bool) -> _Found:
    if source.startswith("hf-hub:"):
        label = source.removeprefix("hf-hub:")
        folder = _from_hub(label)
    else:
        folder, label = Path(source.removeprefix("local-dir:")), source.removeprefix("local-dir:")
        if not folder.is_dir():
            if source.startswith("local-dir:"):
                raise UserError(f"There is no folder {folder}. Give one with {OPEN_CLIP_CONFIG} and weights.")
            return _find_architecture(source, pretrained, weightless)
        label = folder.name
    if pretrained is not None:
        raise UserError(f"{source} brings its own weights; leave out pretrained={str(pretrained)!r}.")
    if not (folder / OPEN_CLIP_CONFIG).is_file():
        raise UserError(f"The folder {folder} holds no {OPEN_CLIP_CONFIG}, so it is no open_clip model.")
    try:
        described = json.loads((folder / OPEN_CLIP_CONFIG).read_text(encoding="utf-8"))
        config, preprocess = dict(described["model_cfg"]), dict(described.get("preprocess_cfg") or {})
        _is_plain(config)  # reads what a model needs
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / OPEN_CLIP_CONFIG} describes no open_clip model ({error!r}).") from None
    weights = sorted(path for end in ("safetensors", "bin", "pth") for path in folder.glob(f"*.{end}"))
    if not weights and not weightless:
        raise UserError(f"{folder} holds a model's description but no weights, such as {_WEIGHTS[0]}.")
    checkpoint = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    others = sorted(path for end in ("json", "txt", "model") for path in folder.glob(f"*.{end}"))
    files = (*others, *([] if weightless else [checkpoint] if checkpoint else weights))
    return _Found(label, f"local-dir:{folder}", config, preprocess, checkpoint, files=files)


def _find_architecture(source: str, pretrained: str | Path | None, weightless: bool) -> _Found:
    name, _, tag = source.partition(":")
    if tag and pretrained is not None:
        raise UserError(f"{source!r} names weights, and so does pretrained={str(pretrained)!r}; give one of them.")
    config = open_clip.get_model_config(name)
    if config is None:
        near = difflib.get_close_matches(name, open_clip.list_models(), n=3, cutoff=0.4)
        raise UserError(
            f"Unknown open_clip architecture '{name}'; did you mean {' or '.join(near) or 'a folder'}? "
            "open_clip.list_models() lists all. A folder of your own needs a path that exists."
        )
    if weightless:
        return _Found(name, name, config, {})
    wanted = tag or (str(pretrained) if pretrained is not None else "")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if not wanted:
        raise UserError(
            f"{name} needs weights: pretrained=FILE, or one of the tags {', '.join(tags) or '(it has none)'}; "
            "or seed=0 for random ones."
        )
    published = open_clip.get_pretrained_cfg(name, wanted)
    label = f"{name}:{wanted if published else Path(wanted).stem}"
    if published:
        try:
            file = Path(open_clip.download_pretrained(published))
        except Exception as error:  # urllib's, huggingface_hub's and open_clip's own
            raise explain_hub_error(
                error, "model", f"{label} ({published.get('hf_hub') or published['url']})"
            ) from error
        quick = bool(published.get("quick_gelu")) and not config.get("quick_gelu", False)
        described = config | {"quick_gelu": quick or config.get("quick_gelu", False)}
        # A TorchScript archive, as OpenAI published its models, is no table of tensors; open_clip unpacks it.
        mappable = file if file.suffix in (".safetensors", ".bin") else None
        return _Found(label, name, described, published, mappable, wanted, quick, (file,))
    if not Path(wanted).is_file():
        raise UserError(
            f"{wanted!r} is neither a file nor a tag of {name}. Its tags: {', '.join(tags) or 'none'}; "
            "check the path, or choose one."
        )
    return _Found(label, name, config, {}, Path(wanted), wanted, files=(Path(wanted),))


def _from_hub(source: str) -> Path:
    """Return the folder in the local cache that holds a hub model's description and weights; downloads what lacks."""
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError

    repo, revision = split_revision(source)
    try:
        folder = snapshot_download(repo, revision=revision, allow_patterns=["*.json", "*.txt", "*.model"])
        for name in _WEIGHTS:
            try:
                hf_hub_download(repo, name, revision=revision)
                break
            except EntryNotFoundError:  # the next name; offline, also what is not in the cache
                continue
    except Exception as error:  # explain_hub_error tells them apart
        raise explain_hub_error(error, "model", source) from error
    return Path(folder)
