"""Vision-language models by name: a hub id, a local folder, an adapter folder or `toy:NAME`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from palate.errors import UserError, unknown
from palate.hub import explain_hub_error, split_revision

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from vlm.families.base import Family, Part

Dtype = Literal["fp32", "bf16"]
Quantise = Literal["none", "4bit", "8bit"]
Attention = Literal["sdpa", "eager", "flash_attention_2"]

OLD_LLAVA = {
    "liuhaotian/llava-v1.5-7b": "llava-hf/llava-1.5-7b-hf",
    "liuhaotian/llava-v1.5-13b": "llava-hf/llava-1.5-13b-hf",
    "liuhaotian/llava-v1.6-vicuna-7b": "llava-hf/llava-v1.6-vicuna-7b-hf",
    "liuhaotian/llava-v1.6-vicuna-13b": "llava-hf/llava-v1.6-vicuna-13b-hf",
    "liuhaotian/llava-v1.6-mistral-7b": "llava-hf/llava-v1.6-mistral-7b-hf",
    "liuhaotian/llava-v1.6-34b": "llava-hf/llava-v1.6-34b-hf",
}
"""Repositories in LLaVA's own layout -> the same weights in that of transformers."""


@dataclass(frozen=True)
class Loaded:
    """A model with its processor, and the adapter to its architecture."""

    model: PreTrainedModel
    processor: Any
    family: Family
    source: str
    attention: Attention = "sdpa"
    is_adapter: bool = False
    """True where `source` is an adapter folder, merged into its base."""


def load_model(
    source: str,
    *,
    dtype: Dtype = "fp32",
    quantise: Quantise = "none",
    attention: Attention = "sdpa",
) -> Loaded:
    """Return a vision-language model in evaluation mode, in `dtype` whatever precision it is stored in.

    source: a transformers folder, a hub id with an optional `@revision`, `toy:NAME`, or a PEFT adapter folder, which names
    its base and is merged into it. quantise: load the linear layers in that many bits (bitsandbytes), `dtype` being what
    they compute in.

    Raises UserError where the model is missing, gated or moved, of an architecture that no family covers, or in the old
    LLaVA layout; the message then names the repository that transformers reads.
    """
    _refuse_old_llava(source)
    path, revision = split_revision(source)
    if _is_adapter(path, revision):
        return _load_adapter(source, path, revision, dtype=dtype, quantise=quantise, attention=attention)
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from vlm.families import FAMILIES, family_of

    try:
        config = _config(path, revision)
        if set(config.get("architectures") or ()) & {"LlavaLlamaForCausalLM", "LlavaMistralForCausalLM"} or str(
            config.get("model_type")
        ) in ("llava_llama", "llava_mistral"):
            raise UserError(_old_llava(source))
        if "model_type" not in config:
            raise UserError(f"{source} is not a model of transformers: it has no config.json that names a model_type.")
        if config["model_type"] not in FAMILIES:
            raise UserError(f"{source}: {unknown('vision-language model type', str(config['model_type']), FAMILIES)}")
        model = AutoModelForImageTextToText.from_pretrained(
            path,
            revision=revision,
            dtype={"fp32": torch.float32, "bf16": torch.bfloat16}[dtype],
            attn_implementation=attention,
            **_quantisation(quantise, dtype, FAMILIES[config["model_type"]].parts),
        )
        processor = AutoProcessor.from_pretrained(path, revision=revision)
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        raise explain_hub_error(error, "model", source) from error
    family = family_of(model.config)
    family.prepare(processor)
    return Loaded(model.eval(), processor, family, source, attention)


def _config(path: str, revision: str | None) -> dict[str, Any]:
    from transformers import PreTrainedConfig

    return PreTrainedConfig.get_config_dict(path, revision=revision)[0]


def _is_adapter(path: str, revision: str | None) -> bool:
    folder = Path(path)
    if folder.is_dir():
        return (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(path, "adapter_config.json", revision=revision)
    except HFValidationError:
        return False
    return isinstance(found, str) and Path(found).is_file()


def _load_adapter(source: str, path: str, revision: str | None, **how: Any) -> Loaded:
    from peft import PeftConfig, PeftModel

    if how["quantise"] != "none":
        raise UserError(
            f"{source} is an adapter, which cannot be merged into a quantised base without loss. Load it with quantise "
            "none, save the merged model (vlm.saving.save_full), and load that one quantised."
        )
    try:
        base = PeftConfig.from_pretrained(path, revision=revision).base_model_name_or_path
    except (OSError, ValueError, TypeError) as error:
        raise explain_hub_error(error, "model", source) from error
    if not base:
        raise UserError(f"The adapter {source} does not name its base model (base_model_name_or_path).")
    try:
        loaded = load_model(base, **how)
        merged = PeftModel.from_pretrained(loaded.model, path, revision=revision).merge_and_unload()
    except UserError as error:
        raise UserError(f"The base model of the adapter {source}: {error}") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"The adapter {source} does not fit its base {base}: {error}") from error
    return replace(loaded, model=merged.eval(), source=source, is_adapter=True)


def _quantisation(quantise: Quantise, dtype: Dtype, parts: Mapping[Part, Sequence[str]]) -> dict[str, Any]:
    """Return what `from_pretrained` takes to quantise the language model. The rest is small, or may train in full."""
    if quantise == "none":
        return {}
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise UserError(f"quantise {quantise} needs bitsandbytes: pip install 'palate[quant]'.") from error
    import torch
    from transformers import BitsAndBytesConfig

    spared = ["lm_head", *parts["projector"], *parts["tower"]]
    compute = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    if quantise == "4bit":
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute,
            llm_int8_skip_modules=spared,
        )
    else:
        config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=spared)
    device = torch.cuda.current_device() if torch.cuda.is_available() else "cpu"
    return {"quantization_config": config, "device_map": {"": device}}


def _refuse_old_llava(source: str) -> None:
    if source.lower().startswith("liuhaotian/"):
        raise UserError(_old_llava(source))


def _old_llava(source: str) -> str:
    name = source.split("@")[0].lower()
    near = OLD_LLAVA.get(name)
    take = near or "one of " + ", ".join(sorted(set(OLD_LLAVA.values())))
    return f"{source} is in LLaVA's own layout, which transformers does not read. The same weights for it: {take}."
