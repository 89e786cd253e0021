"""Answers of a vision-language model to questions about images: batched, seeded row by row, resumable.

asks = [Ask("1", (Message.user("What is this?", 1),), (Media.image("cat.png"),))]
answerer = LocalAnswerer(load_model("llava-hf/llava-1.5-7b-hf"), batch_size=8, max_new_tokens=64)
rows = answer_file(answerer, asks, "answers.jsonl")
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from palate.errors import UserError
from palate.randomness import uniform
from palate.tensor_store import weights_hash
from vlm.answering import Answer, Ask
from vlm.batch import Encoded
from vlm.corruption import Corruption, corrupt_pictures, corrupt_values
from vlm.encoding import Encoder
from vlm.loading import Loaded
from vlm.reference_cache import processor_hash

NONE = Corruption()


class LocalAnswerer:
    """A loaded model that answers in batches.

    temperature: 0 takes the likeliest token. Above 0 tokens are sampled, by draws that depend on `seed`, the ask's id
        and the token's position alone: neither on the batch nor on what was answered before.
    corruption: what is done to the images first; its draws depend on `seed` and the ask's id.
    """

    def __init__(
        self,
        loaded: Loaded,
        *,
        batch_size: int = 8,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        seed: int = 0,
        corruption: Corruption = NONE,
    ) -> None:
        if batch_size < 1 or max_new_tokens < 1 or not temperature >= 0:
            raise UserError(
                "An answer needs a batch size and a number of new tokens of at least 1, and a temperature of at least 0; "
                f"got {batch_size}, {max_new_tokens} and {temperature}."
            )
        self.loaded, self.encoder = loaded, Encoder(loaded, max_length=context_of(loaded))
        self.batch_size, self.max_new_tokens = batch_size, max_new_tokens
        self.temperature, self.seed = temperature, seed
        self.corruption = corruption

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        return {
            "model": self.loaded.source,
            "weights": weights_hash([("", self.loaded.model)]),
            "processor": processor_hash(self.loaded.processor),
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            **({"seed": self.seed} if self.temperature or self.corruption.is_random else {}),
            **({"corruption": corruption_said(self.corruption)} if self.corruption.kind != "none" else {}),
        }

    def answer(self, asks: Sequence[Ask]) -> Iterator[tuple[int, Answer]]:
        """Yield (number of the ask, its answer) in order. An image that cannot be read is a failure of its ask."""
        for begin in range(0, len(asks), self.batch_size):
            batch: dict[int, Encoded] = {}
            for number in range(begin, min(begin + self.batch_size, len(asks))):
                try:
                    batch[number] = self._encode(asks[number])
                except UserError as error:
                    yield number, Answer(failure=str(error))
            if batch:
                yield from zip(batch, self._generate([asks[n].id for n in batch], list(batch.values())), strict=True)

    def _encode(self, ask: Ask) -> Encoded:
        how: dict[str, Any] = {"seed": self.seed, "content": ask.id, "visit": "answer"}
        pictures = corrupt_pictures([image.decode() for image in ask.images], self.corruption, **how)
        encoded = self.encoder.encode(ask.messages, pictures, (), name=ask.id)
        return corrupt_values(encoded, self.corruption, **how, frames=frames_of(self.loaded))

    def _generate(self, names: Sequence[str], items: Sequence[Encoded]) -> Iterator[Answer]:
        model, family = self.loaded.model, self.loaded.family
        width = max(len(item.prompt) for item in items)
        ids = torch.stack([pad(item.prompt, (width - len(item.prompt), 0), value=self.encoder.pad) for item in items])
        mask = torch.stack([pad(torch.ones_like(item.prompt), (width - len(item.prompt), 0)) for item in items])
        images = [image for item in items for image in item.images]
        pixels = family.join(images) if images else None
        own = family.own_inputs(ids, torch.zeros_like(ids), (pixels or {}).get("image_grid_thw"))
        inputs = {**own, **(pixels or {})}
        draw = [_Draw(names, self.seed, self.temperature, width)] if self.temperature else []
        try:
            with _evaluating(model):
                made = model.generate(
                    input_ids=ids.to(model.device),
                    attention_mask=mask.to(model.device),
                    **{name: _to(tensor, model) for name, tensor in inputs.items()},
                    generation_config=self._config,
                    logits_processor=LogitsProcessorList(draw),
                )
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"Out of memory while answering {len(items)} questions at once. Lower the batch size; what was answered "
                "is kept."
            ) from error
        for row in made[:, width:].tolist():
            stop = next((k for k, token in enumerate(row) if token in self._stops), None)
            said = row if stop is None else row[:stop]
            yield Answer(
                text=self.loaded.processor.tokenizer.decode(said, skip_special_tokens=True).strip(),
                finish="length" if stop is None else "stop",
                tokens=len(said) + (stop is not None),
            )

    @cached_property
    def _stops(self) -> frozenset[int]:
        """The token that ends an answer by the chat template, and those that the model's own settings name."""
        own = self.loaded.model.generation_config
        stops = own.eos_token_id if own is not None else None
        return frozenset({self.encoder.end, *([stops] if isinstance(stops, int) else stops or ())})

    @cached_property
    def _config(self) -> GenerationConfig:
        """Plain decoding, whatever the model's own settings are: no penalties, no cut of the distribution."""
        return GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            num_beams=1,
            temperature=1.0,
            top_k=50,
            top_p=1.0,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            use_cache=True,
            eos_token_id=sorted(self._stops),
            pad_token_id=self.encoder.pad,
        )


class _Draw(LogitsProcessor):
    """Leaves one token in each row, drawn from softmax(logits / temperature) by one uniform number per row and step."""

    def __init__(self, names: Sequence[str], seed: int, temperature: float, start: int) -> None:
        self.names, self.seed, self.temperature, self.start = names, seed, temperature, start

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # (B, L), (B, V) -> (B, V)
        step = input_ids.shape[1] - self.start
        draws = [uniform(self.seed, name, step, "answer") for name in self.names]
        below = torch.softmax(scores.double() / self.temperature, -1).cumsum(-1)
        target = torch.tensor(draws, device=scores.device, dtype=below.dtype)[:, None] * below[:, -1:]
        token = (below <= target).sum(-1, keepdim=True).clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -math.inf).scatter(1, token, 0.0)


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and afterwards each of its modules into the mode that it was in.

    4-bit layers stay in theirs (`vlm.method.stay_awake`).
    """
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = module.training and type(module).__name__ == "Linear4bit"
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def corruption_said(corruption: Corruption) -> dict[str, Any]:
    """Return a corruption for a row of data: of noise its step, of other kinds every parameter."""
    return {"kind": "noise", "step": corruption.step} if corruption.kind == "noise" else asdict(corruption)


def frames_of(loaded: Loaded) -> int:
    """Return how often the processor repeats a still image (Qwen: twice)."""
    return int(getattr(loaded.processor.image_processor, "temporal_patch_size", 1))


def context_of(loaded: Loaded) -> int:
    """Return how many tokens the language model takes."""
    return int(getattr(loaded.family.text_config, "max_position_embeddings", None) or 2**20)


def _to(tensor: Any, model: Any) -> Any:
    """Return an input on the model's device, in its precision where it is one of numbers."""
    if not isinstance(tensor, Tensor):
        return tensor
    return tensor.to(model.device, model.dtype if tensor.is_floating_point() else None)
