"""Random weights in the formats that the authors of each scorer publish, made small."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import open_clip
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

ARCHITECTURE = "Tiny-Published"
MODEL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 24, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "blue", "circle", "square", "two", "green", "##s", "triangle"]


def register(folder: Path) -> None:
    """Make the small architecture known to open_clip by name."""
    path = folder / f"{ARCHITECTURE}.json"
    path.write_text(json.dumps(MODEL))
    open_clip.add_model_config(path)


def stir(module: torch.nn.Module, seed: int, amount: float = 0.05) -> torch.nn.Module:
    """Add noise to every weight, so that no norm is the identity and no bias zero."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim:
                parameter.add_(amount * torch.randn(parameter.shape, generator=draw))
    return module


def save_hps(path: Path, seed: int = 5) -> Path:
    """HPS_v2_compressed.pt: half precision under the key state_dict."""
    torch.manual_seed(seed)
    model = stir(open_clip.CLIP(**MODEL), seed)
    torch.save({"state_dict": {k: v.half() for k, v in model.state_dict().items()}}, path)
    return path


def clip_config() -> CLIPConfig:
    """A CLIP of transformers with the sizes of MODEL."""
    tower = {"intermediate_size": 64, "num_hidden_layers": 2, "hidden_act": "gelu"}
    return CLIPConfig(
        vision_config={**tower, "hidden_size": 32, "num_attention_heads": 2, "image_size": 24, "patch_size": 8},
        text_config={**tower, "hidden_size": 16, "num_attention_heads": 2, "vocab_size": 49408, "eos_token_id": 2},
        projection_dim=16,
    )


def save_pickscore(folder: Path, seed: int = 6) -> Path:
    """PickScore_v1: a CLIPModel's folder, without tokenizer and processor."""
    torch.manual_seed(seed)
    model = stir(CLIPModel(clip_config()), seed)
    with torch.no_grad():
        model.logit_scale.fill_(np.log(100.0))
    model.save_pretrained(folder)
    return folder


def head_layers(width: int, seed: int) -> dict[str, Tensor]:
    """The five layers without activations of the aesthetic predictor v2, under its keys."""
    draw = torch.Generator().manual_seed(seed)
    sizes = [width, 1024, 128, 64, 16, 1]
    state = {}
    for number, fan_in, fan_out in zip((0, 2, 4, 6, 7), sizes, sizes[1:]):
        state[f"layers.{number}.weight"] = torch.randn(fan_out, fan_in, generator=draw) / fan_in**0.5
        state[f"layers.{number}.bias"] = torch.randn(fan_out, generator=draw)
    return state


def imagereward_state(seed: int = 7, vision: int = 64, text: int = 64, depth: int = 2) -> dict[str, Tensor]:
    """ImageReward.pt: a flat state dict under BLIP's own names, with the projections that scoring leaves out."""
    draw = torch.Generator().manual_seed(seed)

    def tensor(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw) * 0.15

    state: dict[str, Tensor] = {}

    def linear(name: str, out: int, fan_in: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = tensor(out, fan_in), tensor(out)

    def norm(name: str, width: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = 1 + tensor(width), tensor(width)

    eye, word = "blip.visual_encoder", "blip.text_encoder"
    state[f"{eye}.cls_token"], state[f"{eye}.pos_embed"] = tensor(1, 1, vision), tensor(1, 10, vision)
    state[f"{eye}.patch_embed.proj.weight"] = tensor(vision, 3, 8, 8)
    state[f"{eye}.patch_embed.proj.bias"] = tensor(vision)
    for layer in range(depth):
        block = f"{eye}.blocks.{layer}"
        norm(f"{block}.norm1", vision)
        linear(f"{block}.attn.qkv", 3 * vision, vision)
        linear(f"{block}.attn.proj", vision, vision)
        norm(f"{block}.norm2", vision)
        linear(f"{block}.mlp.fc1", 2 * vision, vision)
        linear(f"{block}.mlp.fc2", vision, 2 * vision)
    norm(f"{eye}.norm", vision)
    state[f"{word}.embeddings.position_ids"] = torch.arange(40)[None]
    state[f"{word}.embeddings.word_embeddings.weight"] = tensor(len(WORDS) + 2, text)
    state[f"{word}.embeddings.position_embeddings.weight"] = tensor(40, text)
    norm(f"{word}.embeddings.LayerNorm", text)
    for layer in range(depth):
        block = f"{word}.encoder.layer.{layer}"
        for attention, width in (("attention", text), ("crossattention", vision)):
            linear(f"{block}.{attention}.self.query", text, text)
            linear(f"{block}.{attention}.self.key", text, width)
            linear(f"{block}.{attention}.self.value", text, width)
            linear(f"{block}.{attention}.output.dense", text, text)
            norm(f"{block}.{attention}.output.LayerNorm", text)
        linear(f"{block}.intermediate.dense", 2 * text, text)
        linear(f"{block}.output.dense", text, 2 * text)
        norm(f"{block}.output.LayerNorm", text)
    linear("blip.vision_proj", 8, vision)
    linear("blip.text_proj", 8, text)
    state |= {f"mlp.{name}": value for name, value in head_layers(text, seed).items()}
    return state


def save_imagereward(folder: Path) -> dict[str, Tensor]:
    """The folder of THUDM/ImageReward with a BERT vocabulary in it; returns the state dict."""
    folder.mkdir(exist_ok=True)
    state = imagereward_state()
    torch.save(state, folder / "ImageReward.pt")
    (folder / "med_config.json").write_text(json.dumps({"num_attention_heads": 4, "layer_norm_eps": 1e-12}))
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    return state


def save_vlm(folder: Path, seed: int = 8) -> Path:
    """A LLaVA of random weights whose tokenizer knows a few words and the verdicts."""
    torch.manual_seed(seed)
    words = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "USER:", "ASSISTANT:", *"12345ABCD", "Yes", "No"]
    words += ["a", "red", "blue", "circle", "square", "Does", "this", "figure", "show", "Request:"]
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=24, patch_size=8
    )
    text = LlamaConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=4, vision_feature_layer=-1)
    model = stir(LlavaForConditionalGeneration(config), seed, 0.1)
    template = (
        "{% for m in messages %}{{ m['role'].upper() }}: "
        "{% for part in m['content'] %}{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}"
        "{% endfor %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    )
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=template,
        num_additional_image_tokens=1,
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
