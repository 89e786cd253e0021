"""Tiny random vision-language models of every family, in the official layout, from a configuration and a seed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE

from palate.conversations import IMAGE, Message

WORDS = [
    "describe the picture, please.",
    "what is in the image? a red circle and a blue square on a green table",
    "how many cats are there? there are two cats and one dog near the window.",
] * 3

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}IMAGE{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As llava-hf/llava-1.5-7b-hf writes it: a space after each text, and no token that ends a turn.
VICUNA = (
    "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['role'].upper() + ': ' }}{% endif %}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}{{ c['text'] + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
SMOL = (
    "<|im_start|>{% for m in messages %}{{ m['role'] | capitalize }}:{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>{% else %} {{ c['text'] }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<start_of_image>{% else %}{{ c['text'] | trim }}{% endif %}"
    "{% endfor %}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def tokenizer(*special: str, bos: str | None = "<s>", eos: str = "</s>", pad: str = "<pad>", **named: str) -> Any:
    """Return a byte-level BPE tokeniser of some 300 tokens; `named` are attributes such as image_token."""
    model = Tokenizer(BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    everything = list(dict.fromkeys([pad, *([bos] if bos else []), eos, *special]))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=len(everything) + 300, special_tokens=everything, initial_alphabet=alphabet, show_progress=False
    )
    model.train_from_iterator(WORDS, trainer)
    if bos and not bos.startswith("<|"):
        model.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, model.token_to_id(bos))]
        )
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=model, bos_token=bos, eos_token=eos, pad_token=pad, extra_special_tokens=named or None
    )


def _text(tok: Any, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tok),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "bos_token_id": tok.bos_token_id,
        "eos_token_id": tok.eos_token_id,
        "pad_token_id": tok.pad_token_id,
        **more,
    }


def _vision(**more: Any) -> dict[str, Any]:
    return {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 24,
        "patch_size": 8,
        **more,
    }


def _square(kind: Any, side: int, **more: Any) -> Any:
    return kind(size={"height": side, "width": side}, **more)


def llava() -> tuple[Any, Any]:
    tok = tokenizer("<image>", image_token="<image>")
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**_vision(projection_dim=16)),
        text_config=hf.LlamaConfig(**_text(tok)),
        image_token_id=tok.convert_tokens_to_ids("<image>"),
    )
    images = hf.CLIPImageProcessor(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    processor = hf.LlavaProcessor(
        images, tok, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=VICUNA,
    )  # fmt: skip
    return hf.LlavaForConditionalGeneration(config), processor


def llava_next() -> tuple[Any, Any]:
    tok = tokenizer("<image>", image_token="<image>")
    pinpoints = [[24, 48], [48, 24], [48, 48]]
    config = hf.LlavaNextConfig(
        vision_config=hf.CLIPVisionConfig(**_vision(projection_dim=16)),
        text_config=hf.MistralConfig(**_text(tok), sliding_window=40),
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=pinpoints,
    )
    images = hf.LlavaNextImageProcessor(
        size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}, image_grid_pinpoints=pinpoints
    )
    processor = hf.LlavaNextProcessor(
        images, tok, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=VICUNA,
    )  # fmt: skip
    return hf.LlavaNextForConditionalGeneration(config), processor


def _idefics_tokenizer() -> Any:
    tiles = [f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7)]
    return tokenizer(
        "<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *tiles,
        bos="<|im_start|>", eos="<end_of_utterance>", pad="<|im_end|>",
    )  # fmt: skip


def idefics3() -> tuple[Any, Any]:
    tok = _idefics_tokenizer()
    config = hf.Idefics3Config(
        vision_config=_vision(image_size=16, patch_size=4),
        text_config=hf.LlamaConfig(**_text(tok)),
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    images = hf.Idefics3ImageProcessor(size={"longest_edge": 32}, max_image_size={"longest_edge": 16})
    return hf.Idefics3ForConditionalGeneration(config), hf.Idefics3Processor(images, tok, 4, chat_template=SMOL)


def smolvlm() -> tuple[Any, Any]:
    tok = _idefics_tokenizer()
    config = hf.SmolVLMConfig(
        vision_config=_vision(image_size=16, patch_size=4),
        text_config=hf.LlamaConfig(**_text(tok)),
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        tie_word_embeddings=True,
    )
    images = hf.SmolVLMImageProcessor(size={"longest_edge": 32}, max_image_size={"longest_edge": 16})
    processor = hf.SmolVLMProcessor(images, tok, hf.SmolVLMVideoProcessor(), 4, chat_template=SMOL)
    return hf.SmolVLMForConditionalGeneration(config), processor


def internvl() -> tuple[Any, Any]:
    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tok = tokenizer(
        "<|im_start|>", "<|im_end|>", *named.values(), bos=None, eos="<|im_end|>", pad="<|endoftext|>", **named
    )
    config = hf.InternVLConfig(
        vision_config=_vision(image_size=[16, 16], patch_size=[4, 4]),
        text_config=hf.Qwen2Config(**_text(tok)),
        image_token_id=tok.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    images = _square(hf.GotOcr2ImageProcessor, 16, crop_to_patches=True, min_patches=1, max_patches=4)
    processor = hf.InternVLProcessor(
        images, tok, hf.InternVLVideoProcessor(), 4, chat_template=CHATML.replace("IMAGE", "<IMG_CONTEXT>\n")
    )
    return hf.InternVLForConditionalGeneration(config), processor


_QWEN = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
_QWEN_TEMPLATE = CHATML.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")


def _qwen(tok: Any) -> dict[str, Any]:
    ids = tok.convert_tokens_to_ids
    return {
        "image_token_id": ids("<|image_pad|>"),
        "video_token_id": ids("<|video_pad|>"),
        "vision_start_token_id": ids("<|vision_start|>"),
        "vision_end_token_id": ids("<|vision_end|>"),
    }


def _qwen_images(patch: int) -> Any:
    side = 2 * patch
    return hf.Qwen2VLImageProcessor(
        patch_size=patch, size={"shortest_edge": 4 * side * side, "longest_edge": 9 * side * side}
    )


def _mrope(*section: int) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(section)}}


def qwen2_vl() -> tuple[Any, Any]:
    tok = tokenizer(*_QWEN, bos=None, eos="<|im_end|>", pad="<|endoftext|>")
    vision = {"embed_dim": 16, "hidden_size": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4}
    config = hf.Qwen2VLConfig(vision_config=vision, text_config=_text(tok) | _mrope(2, 1, 1), **_qwen(tok))
    processor = hf.Qwen2VLProcessor(_qwen_images(4), tok, hf.Qwen2VLVideoProcessor(), chat_template=_QWEN_TEMPLATE)
    return hf.Qwen2VLForConditionalGeneration(config), processor


def qwen2_5_vl() -> tuple[Any, Any]:
    tok = tokenizer(*_QWEN, bos=None, eos="<|im_end|>", pad="<|endoftext|>")
    vision = {
        "hidden_size": 16, "intermediate_size": 24, "out_hidden_size": 32, "depth": 2, "num_heads": 2,
        "patch_size": 4, "window_size": 16, "fullatt_block_indexes": [1],
    }  # fmt: skip
    config = hf.Qwen2_5_VLConfig(vision_config=vision, text_config=_text(tok) | _mrope(2, 1, 1), **_qwen(tok))
    processor = hf.Qwen2_5_VLProcessor(_qwen_images(4), tok, hf.Qwen2VLVideoProcessor(), chat_template=_QWEN_TEMPLATE)
    return hf.Qwen2_5_VLForConditionalGeneration(config), processor


def qwen3_vl() -> tuple[Any, Any]:
    tok = tokenizer(*_QWEN, bos=None, eos="<|im_end|>", pad="<|endoftext|>")
    vision = {
        "hidden_size": 16, "intermediate_size": 24, "out_hidden_size": 32, "depth": 3, "num_heads": 2,
        "patch_size": 16, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1],
    }  # fmt: skip
    config = hf.Qwen3VLConfig(vision_config=vision, text_config=_text(tok) | _mrope(2, 1, 1), **_qwen(tok))
    processor = hf.Qwen3VLProcessor(_qwen_images(16), tok, hf.Qwen3VLVideoProcessor(), chat_template=_QWEN_TEMPLATE)
    return hf.Qwen3VLForConditionalGeneration(config), processor


def gemma3() -> tuple[Any, Any]:
    named = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    tok = tokenizer("<start_of_turn>", "<end_of_turn>", *named.values(), bos="<bos>", eos="<eos>", **named)
    config = hf.Gemma3Config(
        vision_config=hf.SiglipVisionConfig(**_vision(image_size=32)),
        text_config=hf.Gemma3TextConfig(
            **_text(tok),
            sliding_window=12,
            layer_types=["sliding_attention", "full_attention"],
            query_pre_attn_scalar=8,
        ),
        mm_tokens_per_image=4,
        boi_token_index=tok.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=tok.convert_tokens_to_ids("<end_of_image>"),
        image_token_index=tok.convert_tokens_to_ids("<image_soft_token>"),
    )
    processor = hf.Gemma3Processor(_square(hf.Gemma3ImageProcessor, 32), tok, GEMMA, image_seq_length=4)
    model = hf.Gemma3ForConditionalGeneration(config)
    model.generation_config.eos_token_id = [tok.eos_token_id, tok.convert_tokens_to_ids("<end_of_turn>")]
    return model, processor


def paligemma() -> tuple[Any, Any]:
    tok = tokenizer("<image>", bos="<bos>", eos="<eos>", image_token="<image>")
    images = _square(hf.SiglipImageProcessor, 16)
    images.image_seq_length = 4
    processor = hf.PaliGemmaProcessor(images, tok)
    config = hf.PaliGemmaConfig(
        vision_config=hf.SiglipVisionConfig(**_vision(image_size=16), vision_use_head=False, projection_dim=32),
        text_config=hf.GemmaConfig(**_text(tok)),
        image_token_index=tok.convert_tokens_to_ids("<image>"),
        projection_dim=32,
    )
    # Capped logits come with the second version's language model; the cap is set here to see that it is heeded.
    config.text_config.final_logit_softcapping = 5.0
    return hf.PaliGemmaForConditionalGeneration(config), processor


FAMILIES: dict[str, Callable[[], tuple[Any, Any]]] = {
    maker.__name__: maker
    for maker in (
        llava,
        llava_next,
        idefics3,
        smolvlm,
        internvl,
        qwen2_vl,
        qwen2_5_vl,
        qwen3_vl,
        gemma3,
        paligemma,
    )
}
"""`model_type` -> what makes a tiny (model, processor) of it."""


def save_tiny_vlm(name: str, folder: Path, *, seed: int = 0) -> Path:
    """Save a random model of a family with its processor, and return the folder."""
    torch.manual_seed(seed)
    model, processor = FAMILIES[name]()
    with torch.no_grad():  # the usual initialisation is so small, or zero, that a wrong mask would hardly show
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6) if parameter.any() else parameter.normal_(std=0.1)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def picture(seed: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """Return an image of uniform noise."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def question(text: str = "what is in the image?", images: int = 1) -> list[Message]:
    """Return a conversation of one question."""
    return [Message("user", (IMAGE,) * images + (text,))]
