"""Rejected answers of the model itself under a worse image: drawn anew (BPO), or token by token along the true one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from palate.conversations import Exchange
from palate.errors import UserError
from palate.tensor_store import weights_hash
from vlm.answering import Ask
from vlm.batch import Encoded
from vlm.corruption import Corruption, corrupt_values
from vlm.encoding import Encoder
from vlm.generate import LocalAnswerer, context_of, corruption_said, frames_of
from vlm.loading import Loaded
from vlm.rejected.building import Made
from vlm.scoring import AnswerScores

NO_IMAGE = "the prompt has no image to make worse"


class Weakened:
    """BPO's image weakening (2403.08730): what the model says when it hardly sees the image.

    The paper samples at temperature .2 under noise of step 900 (abar .133). The released code contrasts clean against
    noisy logits instead, which hallucinates less, not more; this follows the paper.
    """

    method = "bpo-weaken"

    def __init__(
        self,
        loaded: Loaded,
        *,
        step: int = 900,
        temperature: float = 0.2,
        seed: int = 0,
        batch_size: int = 8,
        max_new_tokens: int = 512,
    ) -> None:
        self.answerer = LocalAnswerer(
            loaded,
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            corruption=Corruption("noise", step=step),
        )

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.answerer.settings

    def build(self, exchanges: Sequence[Exchange]) -> Iterator[tuple[int, Made]]:
        """Yield what the model says about each image; an answer cut at `max_new_tokens` is unfit."""
        numbers = [number for number, exchange in enumerate(exchanges) if exchange.images]
        for number in sorted(set(range(len(exchanges))) - set(numbers)):
            yield number, Made(unfit=NO_IMAGE)
        asks = [Ask(exchanges[n].id, exchanges[n].prompt, exchanges[n].images) for n in numbers]
        for place, answer in self.answerer.answer(asks):
            cut = f"the answer did not end within {self.answerer.max_new_tokens} tokens"
            unfit = cut if answer.finish == "length" else ""
            yield numbers[place], Made(answer.text, {"tokens": answer.tokens}, answer.failure, unfit)


class Noised:
    """POVID's tokens under noise (2402.11411): at each place of the true answer, the token that the model likes best when
    the image is noised (step 500, abar .745), given the true tokens before it.

    In training the same comes with fresh noise at every step (recipe POVID stage 2); as data it can be read and counted.
    """

    method = "povid-noise"

    def __init__(self, loaded: Loaded, *, step: int = 500, seed: int = 0, batch_size: int = 8) -> None:
        self.loaded, self.seed, self.batch_size = loaded, seed, batch_size
        self.corruption = Corruption("noise", step=step)
        self.encoder = Encoder(loaded, max_length=context_of(loaded))
        self.scores = AnswerScores(loaded, with_reference=False, shared=False)
        self.settings: Mapping[str, Any] = {
            "model": loaded.source,
            "weights": weights_hash([("", loaded.model)]),
            "corruption": corruption_said(self.corruption),
            "seed": seed,
        }

    def build(self, exchanges: Sequence[Exchange]) -> Iterator[tuple[int, Made]]:
        """Yield the tokens as text, with how many there are and how many differ from the true ones."""
        for begin in range(0, len(exchanges), self.batch_size):
            batch: dict[int, Encoded] = {}
            for number in range(begin, min(begin + self.batch_size, len(exchanges))):
                exchange = exchanges[number]
                if not exchange.images:
                    yield number, Made(unfit=NO_IMAGE)
                    continue
                try:
                    encoded = self._encode(exchange)
                except UserError as error:
                    yield number, Made(failure=str(error))
                    continue
                if encoded.complete[0]:
                    batch[number] = encoded
                else:
                    yield number, Made(unfit="prompt and answer are longer than the model's context")
            if batch:
                yield from zip(batch, self._likeliest(list(batch.values())), strict=True)

    def _encode(self, exchange: Exchange) -> Encoded:
        pictures = [image.decode() for image in exchange.images]
        encoded = self.encoder.encode(exchange.prompt, pictures, [exchange.answer], name="the exchange")
        how: dict[str, Any] = {"seed": self.seed, "content": exchange.id, "visit": self.method}
        return corrupt_values(encoded, self.corruption, **how, frames=frames_of(self.loaded))

    def _likeliest(self, items: Sequence[Encoded]) -> Iterator[Made]:
        batch = self.encoder.collate(items).to(self.loaded.model.device)
        with torch.no_grad():
            found = self.scores(batch, with_argmax=True).argmax
        for row, item in zip(found[:, 0].tolist(), items, strict=True):
            true = item.answers[0].tolist()[:-1]  # without the end-of-turn token
            said = row[: len(true)]
            changed = sum(a != b for a, b in zip(said, true, strict=True))
            text = self.loaded.processor.tokenizer.decode(said, skip_special_tokens=True).strip()
            yield Made(text, {"tokens": len(true), "tokens_changed": changed})
