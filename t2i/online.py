"""Online preference training: rounds in which the model draws, scorers judge, and it is trained on its best and worst.

accelerate launch -m t2i.online --config t2i/sd15_online --rounds.prompts prompts.txt --out runs/online

A round's folder holds `samples/`, `pairs.parquet`, the training run with its `model/` (`merged/` under LoRA), the
`held_out/` samples and `round.json`. What is there is not made again, so a killed run goes on where it stopped.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palate.config import load_config
from palate.errors import UserError, run
from palate.randomness import key, uniform
from t2i.settings import OnlineConfig, T2IConfig

if TYPE_CHECKING:
    from palate.records import Pair
    from rewards.protocol import Scorer
    from t2i.drawing import Place

SETTINGS = "online.json"
RESULT = "round.json"
PROMPT_FILES = (".txt", ".jsonl", ".csv", ".tsv")


def main(argv: Sequence[str] | None = None) -> None:
    """Read the configuration, run the rounds that are missing, and print the table."""
    config, _ = load_config(OnlineConfig, sys.argv[1:] if argv is None else argv, "t2i.online")
    train_online(config)


def train_online(config: OnlineConfig) -> list[dict[str, Any]]:
    """Run the rounds that are missing and return what each came to, as its round.json says it."""
    from accelerate import PartialState

    from palate.training.loop import start_accelerator
    from t2i.online_report import write_online_report
    from t2i.sample import check_model
    from t2i.train import quiet_libraries

    quiet_libraries()
    check(config)
    start_accelerator(config)
    check_model(config.model.path)
    rounds = _Rounds(config)
    rounds.try_scorers()
    claim(config)
    results = [rounds.run(number) for number in range(config.rounds.count)]
    state = PartialState()
    if state.is_main_process:
        path = write_online_report(Path(config.out), results)
        print(f"The model is {results[-1]['model']}.", f"Report: {path}", sep="\n")
    state.wait_for_everyone()
    return results


def check(config: OnlineConfig) -> None:
    """Raise UserError for settings that no run can have, before anything is loaded."""
    from t2i.scoring import weighted

    for name, value in (("--model.path", config.model.path), ("--rounds.prompts", config.rounds.prompts)):
        if not value:
            raise UserError(f"{name} is missing.")
    if config.data.path:
        raise UserError("--data.path is what the rounds write; leave it out. Prompts come from --rounds.prompts.")
    if config.rounds.images < 2:
        raise UserError("--rounds.images must be at least 2: the best and the worst become a pair.")
    if not config.rounds.scorers:
        raise UserError("--rounds.scorers is empty: name at least one judge, such as [hpsv2.1] (docs/scorers.md).")
    if config.score.timesteps and config.sample.steps > 4:
        raise UserError(
            f"--score.timesteps are those of a few-step model, but --sample.steps {config.sample.steps} draws with many."
        )
    weighted(config.rounds.scorers), weighted(config.rounds.judges)


def claim(config: OnlineConfig) -> None:
    """Note the settings in the run's folder; raises UserError where it holds a run of others, or may not be continued."""
    from accelerate import PartialState

    from t2i.drawing import write_whole

    state, path = PartialState(), Path(config.out) / SETTINGS
    free = {"out", "resume", "log", "checkpoint"}
    mine = {name: value for name, value in asdict(config).items() if name not in free}
    mine["rounds"].pop("count")  # a run may be given more rounds
    mine = json.loads(json.dumps(mine))
    there = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    state.wait_for_everyone()
    if there is not None:
        if config.resume == "never":
            raise UserError(
                f"{config.out} already holds an online run. Continue it with --resume auto, or give another --out."
            )
        differing = [f"--{group}" for group in mine if mine[group] != there.get(group)]
        if differing:
            raise UserError(
                f"{config.out} holds an online run of other settings ({', '.join(differing)}). Give another --out."
            )
    elif state.is_main_process:
        write_whole(path, json.dumps(mine, indent=1))
    state.wait_for_everyone()


def read_round_prompts(source: str, held_out: Sequence[str] = ()) -> list[str]:
    """Return the distinct prompts of a file of prompts, of pairs, or of the toy world, without those held out."""
    from palate.readers import open_pairs
    from t2i.sample import read_prompts

    if source.startswith("toy:") or Path(source).suffix in PROMPT_FILES:
        found = read_prompts(source)
    else:
        found = list(dict.fromkeys(open_pairs(source, on_bad_row="skip").prompts()))
    apart = set(held_out)
    left = [prompt for prompt in found if prompt not in apart]
    if not left:
        raise UserError(f"{source} holds no prompts besides those of --rounds.held_out.")
    return left


def prompts_of_round(prompts: Sequence[str], number: int, per_round: int, seed: int) -> list[str]:
    """Return the prompts of a round: the next `per_round` in a drawn order that begins anew when all had their turn."""
    ordered = sorted(prompts, key=lambda prompt: uniform(seed, prompt, 0, "order of rounds"))
    size = min(per_round or len(ordered), len(ordered))
    return [ordered[(number * size + k) % len(ordered)] for k in range(size)]


def seed_of(seed: int, prompt: str, number: int | str, image: int) -> int:
    """Return the seed of a prompt's image in a round; `held out` names the draws of the comparison."""
    return key(seed, prompt, image, f"round {number}") % 2**32


class _Rounds:
    """What the rounds of a run share."""

    def __init__(self, config: OnlineConfig) -> None:
        from t2i.sample import read_prompts
        from t2i.scoring import weighted

        rounds = config.rounds
        self.config, self.out = config, Path(config.out)
        self.weights = weighted(rounds.scorers)
        self.held_out = read_prompts(rounds.held_out, rounds.held_out_limit) if rounds.held_out else []
        everything = read_prompts(rounds.held_out) if rounds.held_out else []
        self.prompts = read_round_prompts(rounds.prompts, everything)
        self.how = {"steps": config.sample.steps, "guidance": config.sample.guidance}
        if config.data.image.resolution:
            self.how["side"] = config.data.image.resolution
        if config.model.max_sequence_length:
            self.how["max_sequence_length"] = config.model.max_sequence_length
        self.loaded: dict[str, Scorer] = {}

    def run(self, number: int) -> dict[str, Any]:
        """Do what a round lacks and return its result. Every process calls."""
        from accelerate import PartialState

        from t2i.drawing import write_whole

        state, folder = PartialState(), self.out / f"round-{number}"
        done = folder / RESULT
        if done.exists():
            return json.loads(done.read_text(encoding="utf-8"))
        state.print(f"Round {number + 1} of {self.config.rounds.count}")
        drawing = self.model_after(number - 1)
        drawn = self.draw_and_score(number, drawing)
        pairs = self.pair(number)
        outcome = self.train(number)
        model = self.model_after(number)
        compared = self.compare(number, model)
        result = {"round": number, "drawn_by": drawing, "drawn": drawn, **pairs, **outcome, "model": model, **compared}
        state.wait_for_everyone()
        if state.is_main_process:
            write_whole(done, json.dumps(result, indent=1))
        state.wait_for_everyone()
        return json.loads(done.read_text(encoding="utf-8"))

    def model_after(self, number: int) -> str:
        """Return the full pipeline that a round ended with; the first model before the first round."""
        if number < 0:
            return self.config.model.path
        name = "merged" if self.config.model.tuning == "lora" else "model"
        return str(self.out / f"round-{number}" / name)

    def draw_and_score(self, number: int, model: str) -> dict[str, float]:
        """Draw and judge a round's images; return the mean score by scorer and in sum."""
        from t2i.drawing import draw_parts
        from t2i.scoring import read_scored, score_parts

        self.drop_scorers()
        config, samples = self.config.rounds, self.out / f"round-{number}" / "samples"
        seed = self.config.train.seed
        prompts = prompts_of_round(self.prompts, number, config.per_round, seed)
        wanted = [(prompt, seed_of(seed, prompt, number, k)) for prompt in prompts for k in range(config.images)]
        draw_parts(model, wanted, samples, batch_size=config.batch_size, how=self.how, label="draw")
        score_parts(samples, list(self.weights), self.scorer, label="score")
        scored = read_scored(samples)
        if not scored:
            raise UserError(f"The safety checker blacked out every image of round {number}: nothing is left to judge.")
        means = {name: sum(image.scores[name] for image in scored) / len(scored) for name in self.weights}
        return {**means, "total": sum(weight * means[name] for name, weight in self.weights.items())}

    def pair(self, number: int) -> dict[str, int]:
        """Write a round's pairs, and return how many there are and how many prompts gave none."""
        from accelerate import PartialState

        from palate.readers import write_pairs
        from t2i.drawing import write_whole
        from t2i.scoring import best_against_worst, read_scored

        config, folder = self.config.rounds, self.out / f"round-{number}"
        noted = folder / "pairs.json"
        state = PartialState()
        if state.is_main_process and not noted.exists():
            first = number if config.reference == "refresh" else 0
            found: list[Pair] = []
            left_out = 0
            for each in range(first, number + 1):
                images = read_scored(self.out / f"round-{each}" / "samples")
                how = {"min_gap": config.min_gap, "temperature": config.temperature, "source": f"round {each}"}
                pairs, without = best_against_worst(images, self.weights, **how)  # type: ignore[arg-type]
                found, left_out = [*found, *pairs], left_out + without
            if not found:
                raise UserError(
                    f"No prompt of round {number} has two images that differ by --rounds.min_gap {config.min_gap:g}. "
                    "Lower it, or draw more --rounds.images."
                )
            write_pairs(found, folder / "pairs.parquet")
            write_whole(noted, json.dumps({"pairs": len(found), "left_out": left_out}))
        state.wait_for_everyone()
        return json.loads(noted.read_text(encoding="utf-8"))

    def train(self, number: int) -> dict[str, Any]:
        """Train on a round's pairs, merge what LoRA gave, and return the run's report."""
        import yaml
        from accelerate import PartialState

        from t2i.drawing import write_whole
        from t2i.merging import merge_adapter
        from t2i.train import train

        folder, state = self.out / f"round-{number}", PartialState()
        noted = folder / "trained.json"
        if not noted.exists():
            self.drop_scorers()
            config = self.training_config(number)
            plain = json.loads(json.dumps(asdict(config)))  # numbers that jsonargparse checked are types of their own
            outcome = train(config, yaml.safe_dump(plain, sort_keys=False))
            found = {"step": outcome.step, "report": {k: v for k, v in outcome.report.items() if v == v}}
            model = outcome.model
            del outcome
            _free_memory()
            if state.is_main_process:
                if config.model.tuning == "lora" and not (folder / "merged").exists():
                    merge_adapter(model, folder / "merged")
                write_whole(noted, json.dumps(found))
        state.wait_for_everyone()
        return json.loads(noted.read_text(encoding="utf-8"))

    def training_config(self, number: int) -> T2IConfig:
        """Return the settings of a round's training."""
        shared = {f.name: getattr(self.config, f.name) for f in fields(T2IConfig)}
        start = self.model_after(number - 1 if self.config.rounds.reference == "refresh" else -1)
        folder = self.out / f"round-{number}"
        own = {
            "out": str(folder),
            "resume": "auto",
            "model": replace(self.config.model, path=start),
            "data": replace(self.config.data, path=str(folder / "pairs.parquet")),
        }
        return T2IConfig(**{**shared, **own})

    def compare(self, number: int, model: str) -> dict[str, Any]:
        """Return the comparison with the first model on held-out prompts at equal seeds; empty where there are none."""
        from accelerate import PartialState

        from t2i.drawing import draw_parts
        from t2i.evaluate import compare_folders
        from t2i.scoring import weighted

        if not self.held_out:
            return {}
        rounds, base, folder = self.config.rounds, self.out / "base", self.out / f"round-{number}" / "held_out"
        wanted: list[Place] = [(p, seed_of(self.config.train.seed, p, "held out", 0)) for p in self.held_out]
        how: Mapping[str, Any] = {"batch_size": rounds.batch_size, "how": self.how}
        draw_parts(self.config.model.path, wanted, base, label="draw base", **how)
        draw_parts(model, wanted, folder, label="draw held out", **how)
        if not PartialState().is_main_process:
            return {}
        judges = [self.scorer(name) for name in weighted(rounds.judges or rounds.scorers)]
        return {"held_out": compare_folders(folder, base, judges, tie=rounds.tie).as_dict()}

    def try_scorers(self) -> None:
        """Load the judges that missing rounds will ask, once and for nothing: a misspelt one should cost no drawing."""
        from accelerate import PartialState

        from t2i.scoring import weighted

        if (self.out / f"round-{self.config.rounds.count - 1}" / RESULT).exists():
            return
        judges = weighted(self.config.rounds.judges) if self.held_out and PartialState().is_main_process else {}
        for name in {**self.weights, **judges}:
            self.scorer(name)

    def drop_scorers(self) -> None:
        """Make room for drawing and training."""
        self.loaded.clear()
        _free_memory()

    def scorer(self, name: str) -> Scorer:
        """Return a scorer on this process's device, loaded where it is not there."""
        from accelerate import PartialState

        from rewards import load_scorer

        if name not in self.loaded:
            self.loaded[name] = load_scorer(name, device=str(PartialState().device))
        return self.loaded[name]


def _free_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    run(main)
