"""Models by name, and folders that transformers and PEFT load by themselves."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from palate.errors import UserError
from tests.tiny_vlm import FAMILIES
from tests.vlm.batches import mixed_batch
from tests.vlm.test_scoring import HOW, SMALL, shake
from vlm.loading import Loaded, load_model
from vlm.saving import save_full, save_lora
from vlm.scoring import AnswerScores
from vlm.self_test import plain_logps
from vlm.tuning import tune

every_family = pytest.mark.parametrize("name", FAMILIES)


def trained(module: AnswerScores) -> dict[str, torch.Tensor]:
    """Return what the loop hands to `save`: the trained weights by the module's names."""
    frozen = {name for name, p in module.named_parameters() if not p.requires_grad}
    return {name: tensor for name, tensor in module.state_dict().items() if name not in frozen}


def policy_scores(loaded: Loaded) -> torch.Tensor:
    with torch.no_grad():
        found = AnswerScores(loaded, with_reference=False)(mixed_batch(loaded)).policy
    assert found is not None
    return found


@every_family
def test_dtype_is_what_was_asked_for(name: str, tiny: Callable[..., Loaded]):
    """Models are stored in many types, and transformers 5 keeps the stored one unless told otherwise."""
    for dtype, expected in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        assert {p.dtype for p in tiny(name, dtype=dtype).model.parameters()} == {expected}


@every_family
def test_a_full_model_loads_in_plain_transformers(name: str, tiny: Callable[..., Loaded], tmp_path: Path):
    loaded = tiny(name)
    tune(loaded, language="full", projector="full", tower="frozen")
    module = AnswerScores(loaded)
    shake(module)
    save_full(loaded, tmp_path, trained(module))
    before = loaded.model.state_dict()
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32)
    for key, tensor in plain.state_dict().items():
        assert torch.equal(tensor, before[key]), key
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert processor.chat_template == loaded.processor.chat_template
    assert plain.generation_config.eos_token_id == loaded.model.generation_config.eos_token_id
    assert torch.equal(policy_scores(load_model(str(tmp_path))), policy_scores(loaded))


@pytest.mark.parametrize("name", ["llava", "qwen3_vl", "gemma3", "smolvlm"])
@pytest.mark.parametrize("how", ["lora", "povid", "loras", "tower"])
def test_an_adapter_loads_in_plain_peft(name: str, how: str, tiny: Callable[..., Loaded], tmp_path: Path):
    """Also with parts that trained in full beside it. palate loads the folder too, merged into the base that it names."""
    from peft import PeftModel

    loaded = tiny(name)
    tune(loaded, **HOW[how], lora=SMALL)
    module = AnswerScores(loaded)
    shake(module)
    save_lora(loaded, tmp_path, trained(module))
    batch = mixed_batch(loaded)
    ours = policy_scores(loaded)
    base = AutoModelForImageTextToText.from_pretrained(loaded.source, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, tmp_path).eval()
    with torch.no_grad():
        plain = plain_logps(Loaded(model, loaded.processor, loaded.family, ""), batch, 0)
    torch.testing.assert_close(plain[batch.mask[0]], ours[0][batch.mask[0]], atol=1e-5, rtol=0)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == loaded.source
    again = load_model(str(tmp_path))
    assert again.is_adapter
    torch.testing.assert_close(policy_scores(again), ours, atol=2e-5, rtol=0)
    with pytest.raises(UserError, match="is an adapter, and a second one"):
        tune(again)
    with pytest.raises(UserError, match="cannot be merged into a quantised base"):
        load_model(str(tmp_path), quantise="8bit")


def test_only_what_trained_is_in_an_adapter(tiny: Callable[..., Loaded], tmp_path: Path):
    from safetensors import safe_open

    loaded = tiny("smolvlm")  # its head is tied to the embedding, which makes frozen weights appear twice
    tune(loaded, **HOW["povid"], lora=SMALL)
    save_lora(loaded, tmp_path, trained(AnswerScores(loaded)))
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as file:
        names = list(file.keys())
    assert names and all("lora_" in name or "connector" in name for name in names)
    assert not any("lm_head" in name or "embed" in name for name in names)


@pytest.mark.parametrize("source", ["liuhaotian/llava-v1.5-7b", "liuhaotian/LLaVA-v1.5-7B@main", "liuhaotian/other"])
def test_old_llava_names_are_refused_with_the_new_one(source: str):
    with pytest.raises(UserError, match="LLaVA's own layout.*llava-hf/llava-1.5-7b-hf"):
        load_model(source)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"]}, "LLaVA's own layout.*llava-hf/"),
        ({"model_type": "llava_llama"}, "LLaVA's own layout.*llava-hf/"),
        ({"model_type": "llava_nex"}, "did you mean 'llava_next'.*Known: .*qwen2_5_vl"),
        ({"model_type": "llama"}, "Unknown vision-language model type 'llama'"),
        ({}, "is not a model of transformers"),
    ],
)
def test_folders_of_other_models_are_refused(config: dict, reason: str, tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=reason):
        load_model(str(tmp_path))


def test_what_is_not_there_is_said(tmp_path: Path, tiny_folder: Callable[[str], Path]):
    with pytest.raises(UserError, match="neither a local path nor in the local cache"):
        load_model("owner/nothing")
    with pytest.raises(UserError, match="is not a model of transformers"):
        load_model(str(tmp_path))
    with pytest.raises(UserError, match="Unknown toy model"):
        load_model("toy:nothing")
    shutil.copytree(tiny_folder("llava"), tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(str(tmp_path / "broken"))


def test_adapters_that_cannot_be_used(tmp_path: Path, tiny: Callable[..., Loaded]):
    loaded = tiny("llava")
    tune(loaded, lora=SMALL)
    save_lora(loaded, tmp_path, trained(AnswerScores(loaded)))
    path = tmp_path / "adapter_config.json"
    saved = json.loads(path.read_text())
    for base, reason in (("", "does not name its base"), ("owner/gone", "The base model of the adapter.*owner/gone")):
        path.write_text(json.dumps({**saved, "base_model_name_or_path": base}))
        with pytest.raises(UserError, match=reason):
            load_model(str(tmp_path))
    path.write_text("{")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(str(tmp_path))
