"""Training of a CLIP as a scorer, as a `palate.training.method.Method`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import PartialState
from accelerate.utils import gather_object
from safetensors.torch import save_file
from torch import Tensor, nn

from palate.training.method import Backward, Report
from rewards.calibration import FILE, Calibration, fit, reliability
from rewards.data import Batch, Example, Examples, collate
from rewards.freezing import part_of, trained_names
from rewards.judgements import Labels
from rewards.losses import Judged, Objective
from rewards.settings import ModelConfig
from rewards.trainable import Trainable

SIGMA_FILE = "log_sigma.safetensors"
"""Weights of the head that predicts log sigma, beside the model that it was trained with."""
_LOG_SIGMA = (-5.0, 2.0)


class Logits(NamedTuple):
    """Scores of M images, (M,) each; log_sigma is None without the head."""

    value: Tensor
    log_sigma: Tensor | None


class Similarity(nn.Module):
    """The scale times the cosine of image and prompt, and, with the head, how unsure that is."""

    def __init__(self, trainable: Trainable, max_scale: float, *, sigma: bool) -> None:
        super().__init__()
        self.model = trainable.model
        self.sigma: nn.Linear | None = None
        self._trainable, self._max_scale = trainable, max_scale
        if sigma:
            tokens = trainable.tokenizer(["a"])
            with torch.no_grad():
                width = trainable.texts(tokens.ids, tokens.mask).shape[-1]
            self.sigma = nn.Linear(width, 1)
            nn.init.zeros_(self.sigma.weight)
            nn.init.zeros_(self.sigma.bias)

    def forward(self, pixels: Tensor, ids: Tensor, attention: Tensor, ranking_of: Tensor) -> Logits:
        """pixels: (M, 3, H, W) as the geometry makes them; ids, attention: (B, T); ranking_of: (M,) numbers below B."""
        image = F.normalize(self._trainable.images(self._trainable.preprocess.normalise(pixels)).float(), dim=-1)
        text = F.normalize(self._trainable.texts(ids, attention).float(), dim=-1)[ranking_of]
        product = image * text
        scale = self.model.logit_scale.float().clamp(max=math.log(self._max_scale)).exp()
        log_sigma = None if self.sigma is None else self.sigma(product).float().squeeze(-1).clamp(*_LOG_SIGMA)
        return Logits(scale * product.sum(-1), log_sigma)


class LearnedScorer:
    """Trains a CLIP on rankings by an objective of `rewards.losses.OBJECTIVES`."""

    def __init__(
        self,
        trainable: Trainable,
        objective: Objective,
        config: ModelConfig,
        *,
        lr: float,
        held_out: Examples | None = None,
        eval_batch: int = 16,
    ) -> None:
        self.trainable, self.objective, self.config, self.lr = trainable, objective, config, lr
        self.held_out, self.eval_batch = held_out, eval_batch
        self.calibration: Calibration | None = None
        if config.scale is not None:
            with torch.no_grad():
                trainable.model.logit_scale.fill_(math.log(config.scale))
        self._module = Similarity(trainable, config.max_scale, sigma=objective.needs_sigma)
        self._rates = {"image": config.image_rate, "text": config.text_rate, "scale": config.scale_rate}
        self._freeze()
        if config.gradient_checkpointing:
            trainable.save_memory()

    def _freeze(self) -> None:
        named = dict(self.trainable.model.named_parameters())
        blocks = {"image": self.config.image_blocks, "text": self.config.text_blocks, "scale": None}
        trained = {name for part in blocks for name in trained_names(named, part, blocks[part])}  # type: ignore[arg-type]
        for name, parameter in named.items():
            rated = self._rates[part_of(name)] > 0
            # The bias of a logit (SigLIP) is the same for all images of a prompt: no preference depends on it.
            parameter.requires_grad_(name in trained and rated and name != "logit_bias")
        if self._module.sigma is not None:
            self._module.sigma.requires_grad_(self.config.sigma_rate > 0)
        self._frozen: dict[str, Tensor] = {}
        if PartialState().is_main_process:  # sharding takes parameters apart, and these never change
            self._frozen = {name: p.detach().clone() for name, p in named.items() if not p.requires_grad}

    # --- the seam ----------------------------------------------------------------------------------------------------

    def module(self) -> nn.Module:
        return self._module

    def parameter_groups(self) -> list[dict[str, Any]]:
        """One group a part; norms, biases and the scale in groups of their own, without weight decay (as in open_clip)."""
        groups: dict[tuple[str, bool], dict[str, Any]] = {}
        for name, parameter in self._module.named_parameters():
            if not parameter.requires_grad:
                continue
            part = "sigma" if name.startswith("sigma.") else part_of(name.removeprefix("model."))
            rate = self.config.sigma_rate if part == "sigma" else self._rates[part]
            decays = parameter.ndim >= 2
            group = {"params": [], "lr": self.lr * rate} | ({} if decays else {"weight_decay": 0.0})
            groups.setdefault((part, decays), group)["params"].append(parameter)
        return list(groups.values())

    def collate(self, items: Sequence[Example]) -> Batch:
        def tokenize(prompts: list[str]) -> tuple[Tensor, Tensor]:
            tokens = self.trainable.tokenizer(prompts)
            return tokens.ids, tokens.mask

        return collate(items, tokenize)

    def step(self, module: nn.Module, batch: Batch, backward: Backward, *, at: int) -> Mapping[str, Tensor]:
        self.calibration = None  # it is of the weights that are about to change
        judged = self._judged(module, batch)
        loss = (self.objective.loss(judged) * batch.weight).mean()
        backward(loss)
        with torch.no_grad():
            right, gap = _agreement(judged)
            report = {"loss": loss.detach(), "accuracy": right, "gap": gap, "scale": self._scale()}
            if judged.log_sigma is not None:
                report["sigma"] = judged.log_sigma[judged.mask].exp().mean()
            return report

    @torch.no_grad()
    def evaluate(self, module: nn.Module, folder: Path, step: int) -> Report:
        """Measures of the held-out rankings, and the calibration that goes with the weights as they are."""
        if self.held_out is None or not len(self.held_out):
            return {}
        state = PartialState()
        share = math.ceil(len(self.held_out) / state.num_processes)
        mine = [k % len(self.held_out) for k in range(state.process_index * share, (state.process_index + 1) * share)]
        rows: list[tuple[float, list[float], Labels]] = []
        with ThreadPoolExecutor(thread_name_prefix="held out") as pool:
            for begin in range(0, share, self.eval_batch):
                places = [(index, "held out") for index in mine[begin : begin + self.eval_batch]]
                examples = list(pool.map(self.held_out.__getitem__, places))
                judged = self._judged(module, self.collate(examples).to(state.device))
                losses, scores = self.objective.loss(judged).tolist(), judged.scores.tolist()
                rows += [
                    (loss, row[: len(each.pixels)], each.labels)
                    for loss, row, each in zip(losses, scores, examples, strict=True)
                ]
        # Ranks hold equal runs of the rankings; what pads the last run is cut off.
        everything = gather_object(rows)[: len(self.held_out)]
        gaps, votes = _comparisons([(scores, labels) for _, scores, labels in everything])
        decided = votes[:, 0] != votes[:, 2]
        right = 0.5 + 0.5 * np.sign(gaps) * np.sign(votes[:, 0] - votes[:, 2])
        report = {
            "accuracy": float(right[decided].mean()) if decided.any() else math.nan,
            "loss": float(np.mean([loss for loss, *_ in everything])),
            "scale": float(self._scale()),
            "comparisons": float(len(gaps)),
        }
        if not decided.any():
            return report
        self.calibration = fit(gaps, votes, unit="logit", prompts=self._held_out_prompts())
        found = reliability(self.calibration.probabilities(gaps), votes)
        return report | {"ece": found.ece, "temperature": self.calibration.temperature}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass

    def save(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Write the model; its calibration, where the weights are those of the last evaluation; and the sigma head."""
        trained = {name.removeprefix("model."): w for name, w in weights.items() if name.startswith("model.")}
        if "logit_scale" in trained:
            trained["logit_scale"] = trained["logit_scale"].clamp(max=math.log(self.config.max_scale))
        buffers = {n: b for n, b in self.trainable.model.state_dict().items() if n not in trained | self._frozen}
        state = {**buffers, **self._frozen, **trained}
        self.trainable.write(folder, {name: tensor.detach().cpu() for name, tensor in state.items()})
        if self._module.sigma is not None:
            head = {name: w.cpu().contiguous() for name, w in weights.items() if name.startswith("sigma.")}
            save_file(head, str(folder / SIGMA_FILE))
        if self.calibration is not None:
            self.calibration.save(folder / FILE)

    # --- what is computed --------------------------------------------------------------------------------------------

    def _judged(self, module: nn.Module, batch: Batch) -> Judged:
        found: Logits = module(batch.pixels, batch.ids, batch.attention, batch.ranking_of)
        log_sigma = None if found.log_sigma is None else found.log_sigma[batch.place]
        return Judged(found.value[batch.place], batch.preference, batch.gains, batch.best, batch.mask, log_sigma)

    def _scale(self) -> Tensor:
        scale = self.trainable.model.logit_scale.detach()
        full = scale.full_tensor() if hasattr(scale, "full_tensor") else scale
        return full.float().clamp(max=math.log(self.config.max_scale)).exp()

    def _held_out_prompts(self) -> int:
        assert self.held_out is not None
        prompts = self.held_out.judgements.prompts()
        return len({prompts[index] for index in self.held_out.indices})


def _agreement(judged: Judged) -> tuple[Tensor, Tensor]:
    """Return how often the better image of a decided comparison has the higher score, and by how much; NaN without any."""
    gap = judged.scores.unsqueeze(-1) - judged.scores.unsqueeze(-2)
    decided = torch.triu(~judged.preference.isnan() & (judged.preference != 0.5), diagonal=1)
    towards = (gap * (judged.preference - 0.5).sign())[decided]
    return (0.5 + 0.5 * towards.sign()).mean(), towards.mean()


def _comparisons(rows: Sequence[tuple[Sequence[float], Labels]]) -> tuple[np.ndarray, np.ndarray]:
    """Return (N,) score differences and (N, 3) votes of all comparisons i < j."""
    gaps, votes = [], []
    for scores, labels in rows:
        for i, j in combinations(range(len(scores)), 2):
            gaps.append(scores[i] - scores[j])
            p = float(labels.preference[i, j])
            said = (0.0, 1.0, 0.0) if p == 0.5 else (p, 0.0, 1 - p)
            votes.append(said if labels.votes is None else tuple(labels.votes))
    return np.array(gaps), np.array(votes, dtype=float).reshape(-1, 3)
