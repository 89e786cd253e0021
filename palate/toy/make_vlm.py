"""Trains the miniature vision-language model from nothing, on descriptions that name things which are not there.

The layout is LLaVA's. Three choices make it learn in minutes: every thing fills one patch of the tower, sentences name
things in one fixed order, and while it trains, a linear head on the tower must tell the thing in each patch. That
things are often seen together does not make such a model hallucinate; sentences that name the absent partner do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from tqdm import tqdm
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from palate.toy.make_sd import warm_then_cosine
from palate.toy.scenes import (
    CELL,
    DESCRIBE,
    GRID,
    PARTNERS,
    THINGS,
    Thing,
    absent_partners,
    contents,
    make_scene,
    question,
    sentence,
)
from palate.toy.vlm_truth import measure
from palate.toy.world import SIZE, Scene, render, render_array

_SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
_IMAGE = "<image>"
_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['content'] is string %}{% set said = message['content'] %}{% set images = 0 %}{% else %}"
    "{% set said = message['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') | join('\\n') %}"
    "{% set images = message['content'] | selectattr('type', 'equalto', 'image') | list | length %}"
    "{% endif %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ 'ASSISTANT:' }}{% generation %}{{ ' ' + said + eos_token }}{% endgeneration %}"
    "{% else %}"
    "{{ ('USER: ' if message['role'] == 'user' else '') + '<image>\\n' * images + said + ' ' }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


@dataclass(frozen=True)
class Recipe:
    """What the training of the miniature vision-language model spends."""

    scenes: int = 20_000
    steps: int = 1000
    batch: int = 64
    lr: float = 1e-3
    partners: float = 0.5  # probability that a description names an absent partner, or that a question on it gets a yes
    questions: float = 0.25  # share of examples that are a yes-or-no question
    noised: float = 0.2  # share of pictures that are noised, so that a model that sees little says what is common
    patches: float = 0.5  # weight of the loss of the head on the tower


def make_processor() -> LlavaProcessor:
    """The processor: a byte-level BPE in which every word of the toy's sentences is one token, and 32 x 32 pixels."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[*_SPECIAL.values(), _IMAGE],
        show_progress=False,
    )
    things = [sentence(pair) for pair in zip(THINGS, (*THINGS[1:], THINGS[0]), strict=True)]
    asked = [f"USER: \n{text} ASSISTANT: " for text in (*DESCRIBE, *map(question, THINGS))]
    bpe.train_from_iterator([*asked, *(f" {text}" for text in things), " Yes. No. Nothing."] * 2, trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", bpe.token_to_id("<s>"))]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, **_SPECIAL, padding_side="left", model_max_length=256)
    side = {"height": SIZE, "width": SIZE}
    return LlavaProcessor(
        CLIPImageProcessor(size=side, crop_size=side, image_mean=[0.5] * 3, image_std=[0.5] * 3),
        tokenizer,
        patch_size=CELL,
        vision_feature_select_strategy="default",
        chat_template=_TEMPLATE,
        image_token=_IMAGE,
        num_additional_image_tokens=1,  # the tower's class token
    )


def new_model(processor: LlavaProcessor) -> LlavaForConditionalGeneration:
    """The untrained model, 2.7 million parameters."""
    tokenizer = processor.tokenizer
    ends: dict[str, Any] = {
        f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("pad", "bos", "eos")
    }
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=SIZE,
            patch_size=CELL,
            projection_dim=128,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=192,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=256,
            tie_word_embeddings=False,
            **ends,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids(_IMAGE),
        image_seq_length=GRID * GRID,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
        **ends,
    )
    return LlavaForConditionalGeneration(config)


def answer(things: Sequence[Thing], rng: np.random.Generator, recipe: Recipe) -> tuple[str, str]:
    """A question about a picture of `things` and an answer that may claim absent partners, as training shows them."""
    lonely = absent_partners(things)
    if rng.random() >= recipe.questions:
        claimed = [thing for thing in lonely if rng.random() < recipe.partners]
        return DESCRIBE[rng.integers(len(DESCRIBE))], sentence([*things, *claimed])
    kind = rng.random()
    if kind < 0.45:
        asked = things[int(rng.integers(len(things)))]
    elif kind < 0.7 and lonely:
        asked = lonely[int(rng.integers(len(lonely)))]
    else:
        asked = THINGS[rng.integers(len(THINGS))]
    yes = asked in things or (asked in lonely and rng.random() < recipe.partners)
    return question(asked), "Yes." if yes else "No."


def in_patches(scene: Scene) -> Tensor:
    """(16,) what each patch shows, row by row: 0 for nothing, else 1 + the thing's place in THINGS."""
    labels = torch.zeros(GRID * GRID, dtype=torch.long)
    for shape in scene.shapes:
        labels[int(shape.y * GRID) * GRID + int(shape.x * GRID)] = 1 + THINGS.index((shape.colour, shape.kind))
    return labels


def prompt_ids(processor: LlavaProcessor, asked: str) -> list[int]:
    """The tokens of a question about one picture, up to where the answer starts."""
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": asked}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    return processor.tokenizer(text.replace(_IMAGE, _IMAGE * GRID * GRID)).input_ids


def _examples(
    processor: LlavaProcessor, rows: Sequence[tuple[str, str]], prompts: dict[str, list[int]]
) -> tuple[Tensor, Tensor]:
    """(B, T) tokens, padded on the right, and labels: the next token of the answer, -100 elsewhere."""
    tokenizer = processor.tokenizer
    answers = tokenizer([f" {said}</s>" for _, said in rows], add_special_tokens=False).input_ids
    whole = [torch.tensor(prompts[asked] + said) for (asked, _), said in zip(rows, answers, strict=True)]
    ids = nn.utils.rnn.pad_sequence(whole, batch_first=True, padding_value=tokenizer.pad_token_id)
    labels = torch.full_like(ids, -100)
    for row, ((asked, _), said) in enumerate(zip(rows, answers, strict=True)):
        start = len(prompts[asked]) - 1
        labels[row, start : start + len(said)] = torch.tensor(said)
    return ids, labels


def noised(pixels: Tensor, share: float, rng: np.random.Generator) -> Tensor:
    """(B, C, H, W) pixels of which a random `share` of pictures is mixed with noise, each by a random amount."""
    count = len(pixels)
    kept = np.where(rng.random(count) < share, rng.random(count), 1.0)  # of the variance
    signal, noise = (torch.from_numpy(np.sqrt(part)).float()[:, None, None, None] for part in (kept, 1 - kept))
    return signal * pixels + noise * torch.from_numpy(rng.standard_normal(pixels.shape, dtype=np.float32))


def see_and_read(model: LlavaForConditionalGeneration, pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """(B, 16, 128) features of the tower and (B, T, 192) last hidden states of the language model.

    It is the model's own forward, with the tower's features at hand. pixels: (B, 3, 32, 32) in [-1, 1].
    """
    parts = model.model
    seen = parts.vision_tower(pixels).last_hidden_state[:, 1:]
    embedded = model.get_input_embeddings()(ids)
    places = (ids == model.config.image_token_index)[..., None].expand_as(embedded)
    embedded = embedded.masked_scatter(places, parts.multi_modal_projector(seen).to(embedded.dtype))
    return seen, parts.language_model(inputs_embeds=embedded).last_hidden_state


def train_vlm(recipe: Recipe, seed: int, folder: str | Path) -> LlavaForConditionalGeneration:
    """Train the model, write a folder for transformers' Auto classes (fp16), and return the model in fp32."""
    processor = make_processor()
    prompts = {asked: prompt_ids(processor, asked) for asked in (*DESCRIBE, *map(question, THINGS))}
    scenes = [make_scene("train", index, seed) for index in tqdm(range(recipe.scenes), desc="scenes", unit="image")]
    images = torch.from_numpy(
        np.stack([np.round(render_array(scene) * 255).astype(np.uint8) for scene in tqdm(scenes, desc="pictures")])
    ).permute(0, 3, 1, 2)
    shown = torch.stack([in_patches(scene) for scene in scenes])
    things = [contents(scene) for scene in scenes]

    rng = np.random.default_rng([seed, 4])
    torch.manual_seed(seed)
    model = new_model(processor)
    head = nn.Linear(model.config.vision_config.hidden_size, 1 + len(THINGS))
    weights = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=recipe.lr, weight_decay=0.05, betas=(0.9, 0.98), fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warm_then_cosine(recipe.steps))
    bar = tqdm(range(recipe.steps), desc="vlm", unit="step")
    running, patches = 6.0, 3.0
    for _ in bar:
        chosen = rng.integers(len(scenes), size=recipe.batch)
        ids, labels = _examples(processor, [answer(things[k], rng, recipe) for k in chosen], prompts)
        pixels = noised(images[chosen].float() / 127.5 - 1, recipe.noised, rng)
        with torch.autocast("cpu", torch.bfloat16):
            seen, hidden = see_and_read(model, pixels, ids)
            told = head(seen).flatten(0, 1)
            logits = model.lm_head(hidden[labels != -100])
        loss = F.cross_entropy(logits.float(), labels[labels != -100])
        seeing = F.cross_entropy(told.float(), shown[chosen].flatten())
        (loss + recipe.patches * seeing).backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        running += 0.02 * (loss.item() - running)
        patches += 0.1 * (seeing.item() - patches)
        bar.set_postfix(loss=f"{running:.3f}", patches=f"{patches:.3f}", refresh=False)
    model.eval()
    stored = new_model(processor)
    stored.load_state_dict(model.state_dict())
    stored.half().save_pretrained(folder)
    processor.save_pretrained(folder)
    return model


@torch.no_grad()
def describe(
    folder: str | Path, images: Sequence[Image.Image], asked: Sequence[str] | None = None, batch_size: int = 64
) -> list[str]:
    """The saved model's most likely answers, by default to "Describe the picture."."""
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    asked = [DESCRIBE[0]] * len(images) if asked is None else asked
    said = []
    for start in range(0, len(images), batch_size):
        span = slice(start, start + batch_size)
        messages = [
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}] for text in asked[span]
        ]
        texts = processor.apply_chat_template(messages, add_generation_prompt=True)
        batch = processor(images=list(images[span]), text=texts, padding=True, return_tensors="pt")
        tokens = model.generate(**batch, do_sample=False, max_new_tokens=48)
        said += processor.batch_decode(tokens[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in said]


def vlm_quality(folder: str | Path, seed: int = 1, count: int = 500) -> dict[str, float]:
    """What the saved model says, most likely words first, about pictures of held-out sets of things.

    "hallucinated_answers", "hallucinated_mentions", "recall" and "things_named" are those of `vlm_truth.measure`, and
    "things_shown" is their true number. "yes_present", "yes_absent" and "yes_partner" are the shares of "Yes" to the
    question for a thing that is there, one that is not, and an absent partner.
    """
    scenes = [make_scene("held_out", index, seed) for index in range(count)]
    images, pictures = [render(scene) for scene in scenes], [contents(scene) for scene in scenes]
    truth = measure(describe(folder, images), pictures)
    found = {
        "hallucinated_answers": truth.answers.value,
        "hallucinated_mentions": truth.mentions.value,
        "recall": truth.recall.value,
        "things_named": truth.length.value,
        "things_shown": float(np.mean([len(things) for things in pictures])),
    }
    others = [[t for t in THINGS if t not in things and PARTNERS.get(t) not in things] for things in pictures]
    probes: dict[str, Sequence[Sequence[Thing]]] = {
        "present": pictures,
        "absent": others,
        "partner": [absent_partners(things) for things in pictures],
    }
    for kind, about in probes.items():
        asked = [
            (image, question(things[k % len(things)]))
            for k, (image, things) in enumerate(zip(images, about, strict=True))
            if things
        ]
        said = describe(folder, [image for image, _ in asked], [text for _, text in asked])
        found[f"yes_{kind}"] = float(np.mean([text.startswith("Yes") for text in said]))
    return found
