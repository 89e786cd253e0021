"""What leaves the arena: pairs that train, a log from which every number follows, and challengers that come in."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from apps import enter as enter_command
from apps import export as export_command
from apps.arena import admin
from apps.arena.export.log import write_log
from apps.arena.export.training_pairs import Gates, collect, is_held_out, write
from apps.arena.packs.entering import enter, open_prompts
from apps.arena.packs.format import Pack, PackItem, PackOutput
from apps.arena.packs.sources import Made
from apps.arena.ratings.board import board
from apps.arena.ratings.log import read_log
from apps.arena.settings import Checks, Matching
from apps.arena.store import schema
from apps.arena.store.catalog import load
from palate.errors import UserError
from palate.readers import open_pairs
from tests.apps.arena.small import PLAIN, Small, answer_pack, image_pack, picture, small_arena
from tests.tiny import tiny_sd

TWO = ("anchor", "bravo")


def single_pack(prompts: int, models: tuple[str, ...] = TWO) -> Pack:
    """One output per model, so that every vote on a prompt is on the same two outputs."""
    return image_pack(prompts=prompts, models=models, seeds=1)


def prefers(small: Small, votes: int, favourite: str = "anchor", slip: bool = False) -> None:
    """Somebody new votes for one model's outputs, or, with `slip`, against them."""
    voter = small.voter()
    for _ in range(votes):
        battle = voter.battle()
        small.clock.pass_seconds(5)
        outcome = "a" if (maker_of_a(small, battle) == favourite) != slip else "b"
        assert voter.post("vote", token=battle["token"], outcome=outcome)[0] == 200


def maker_of_a(small: Small, battle: dict[str, Any]) -> str:
    """Look into the database."""
    found = select(schema.models.c.name).join(schema.battles, schema.battles.c.model_a == schema.models.c.id)
    with small.arena.engine.connect() as connection:
        return connection.execute(found.where(schema.battles.c.id == battle["token"].split("~")[0])).scalar_one()


def test_pairs_are_pooled_and_gated(tmp_path: Path) -> None:
    """Three voters on one prompt, one of whom errs: p = 2/3; with min_agreement .7 nothing is left."""
    with small_arena(tmp_path, packs=(single_pack(1),)) as small:
        for slip in (False, False, True):
            prefers(small, 1, slip=slip)
        exported = collect(small.arena, "image", Gates(), held_out=0.0)
        [pair] = exported.train
        assert pair.p_chosen == pytest.approx(2 / 3) and pair.prompt == "a thing number 0" and pair.source == "arena"
        assert pair.meta["models"][pair.chosen.id] == ["anchor"] and pair.meta["category"] == "even"
        assert not collect(small.arena, "image", Gates(min_agreement=0.7), 0.0).train
        assert not collect(small.arena, "image", Gates(min_votes=4), 0.0).train
        voters = pair.meta["voters"]
        with small.arena.engine.connect() as connection:
            assert not set(voters) & set(connection.scalars(select(schema.voters.c.id)))


def test_what_is_left_out_of_pairs(tmp_path: Path) -> None:
    """Withdrawn, excluded, both-bad, tied, skipped and known-identity votes; ties and the last on request."""
    with small_arena(tmp_path, packs=(single_pack(8),)) as small:
        arena, person = small.arena, small.voter()
        kept = person.vote("a")
        excluded = person.vote("b")["token"].split("~")[0]
        arena.writer.run(lambda c: admin.exclude(c, "battle", excluded, "a test", small.clock()))
        person.vote("both_bad")
        tied = person.vote("tie")
        person.post("undo", token=person.vote("a")["token"])
        person.post("skip", token=person.battle()["token"])
        arena.writer.run(lambda c: c.execute(schema.voters.update().values(owner=True)))
        knowing = person.vote("a")
        exported = collect(arena, "image", Gates(), held_out=0.0)
        assert [pair.prompt for pair in exported.train] == [kept["prompt"]]
        assert exported.flagged == {"excluded": 1, "withdrawn": 1, "known_identity": 1}
        more = collect(arena, "image", Gates(keep=("known_identity",)), 0.0).train
        assert [pair.prompt for pair in more] == [kept["prompt"], knowing["prompt"]]
        soft = collect(arena, "image", Gates(ties="soft"), 0.0).train
        assert {pair.prompt: pair.p_chosen for pair in soft} == {kept["prompt"]: 1.0, tied["prompt"]: 0.5}
        with pytest.raises(UserError, match="Unknown flag to keep 'gold'"):
            collect(arena, "image", Gates(keep=("gold",)), 0.0)


def test_training_prompts_never_judge_the_challenger(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The split is a function of the prompt; what was exported for training is not asked of a challenger, nor accepted."""
    store, out = tmp_path / "arena", tmp_path / "pairs.parquet"
    with small_arena(store, packs=(single_pack(10),)) as small:
        prefers(small, 10)
    export_command.main(["--store", str(store), "--out", str(out), "--held-out", "0.5"])
    train = {pair.prompt for pair in open_pairs(out)}
    apart = {pair.prompt for pair in open_pairs(tmp_path / "pairs.held_out.parquet")}
    assert len(train) + len(apart) == 10 and not train & apart
    assert apart == {prompt for prompt in train | apart if is_held_out(prompt, 0.5)}
    assert "10 votes -> 10 pairs" in capsys.readouterr().out
    with small_arena(store, packs=()) as small:
        assert set(open_prompts(small.arena, "image")) == apart
        outputs = tmp_path / "drawn"
        outputs.mkdir()
        rows = []
        for number, prompt in enumerate([*sorted(train | apart), "never asked"]):
            picture(5000 + number).save(outputs / f"{number}.png")
            rows.append({"file_name": f"{number}.png", "prompt": prompt, "seed": number})
        (outputs / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    enter_command.main(["--store", str(store), "--name", "challenger", "--outputs", str(outputs)])
    said = capsys.readouterr().out
    assert f"{len(apart)} new outputs" in said and f"{len(train)} to training prompts, 1 to prompts that" in said
    with small_arena(store, packs=()) as small:
        with small.arena.engine.connect() as connection:
            catalog = load(connection)
        place = catalog.names.index("challenger")
        shared = {p for pair, those in catalog.shared(None).items() if place in pair for p in those}
        assert {catalog.prompts[p].text for p in shared} == apart
        assert enter(small.arena, "challenger", [Made(min(apart), outputs / "0.png")]).new in (0, 1)
        with pytest.raises(
            UserError, match="None of the 1 outputs can enter: 1 are to prompts that went into training"
        ):
            enter(small.arena, "challenger", [Made(min(train), outputs / "0.png")])
        made = [Made(min(train), outputs / "0.png")]
        assert enter(small.arena, "stranger", made, trained_elsewhere=True).new == 1


def test_a_newcomer_is_preferred(tmp_path: Path) -> None:
    """All but a tenth of battles are the newcomer's: of 8, fewer than 4 would be a miracle (2e-6)."""
    matching = Matching(newcomer_share=0.9, newcomer_battles=8)
    with small_arena(tmp_path, packs=(single_pack(20),), matching=matching) as small:
        prefers(small, 10)
        made = [Made(f"a thing number {n}", _saved(tmp_path / f"{n}.png", 900 + n)) for n in range(20)]
        enter(small.arena, "challenger", made)
        small.arena.board.refresh()
        voter = small.voter()
        cast = [voter.vote(reveal=True) for _ in range(8)]
        assert sum("challenger" in (b["a"]["model"], b["b"]["model"]) for b in cast) >= 4


def _saved(path: Path, seed: int) -> Path:
    picture(seed).save(path)
    return path


def test_the_exported_log_gives_the_live_board(tmp_path: Path) -> None:
    """Every number: the board that the server shows equals the one computed from its log, withdrawals, checks and
    exclusions included; the log holds no voter's id and no model name but in its columns."""
    checks = Checks(gold_share=0.1, repeat_share=0.1, after=2)
    with small_arena(tmp_path / "arena", packs=(image_pack(prompts=20),), checks=checks) as small:
        people = [small.voter() for _ in range(3)]
        for number in range(7):
            for place, person in enumerate(people):
                battle = person.vote(("a", "b", "tie", "both_bad")[(number + place) % 4])
                if number == 3:
                    person.post("undo", token=battle["token"])
        with small.arena.engine.connect() as connection:
            voters = list(connection.scalars(select(schema.voters.c.id)))
        small.arena.writer.run(lambda c: admin.exclude(c, "voter", voters[0], "a test", small.clock()))
        number = small.arena.writer.run(lambda c: admin.exclude(c, "voter", voters[1], "a slip", small.clock()))
        small.arena.writer.run(lambda c: admin.include(c, number, small.clock()))
        small.arena.board.refresh()
        small.arena.board.compute()
        live = small.arena.board.answer()
        folder = write_log(small.arena.engine, small.arena.tokens, tmp_path / "log")
        zipped = write_log(small.arena.engine, small.arena.tokens, tmp_path / "log.zip")
        recomputed = board(read_log(folder), bootstraps=PLAIN.bootstraps).as_dict()
        assert recomputed == board(read_log(zipped), bootstraps=PLAIN.bootstraps).as_dict()
        shown = json.loads(json.dumps(live["board"]))
        assert shown == json.loads(json.dumps(recomputed))
        assert 0 < live["votes"] < 21
        text = "".join((folder / name).read_text() for name in ("votes.jsonl", "events.jsonl", "prompts.jsonl"))
        assert not any(voter in text for voter in voters)
        assert '"a/luminance"' in text
        with zipfile.ZipFile(zipped) as archive:
            assert set(archive.namelist()) == {"votes.jsonl", "events.jsonl", "prompts.jsonl"}


def test_answers_become_pairs_that_trl_reads(tmp_path: Path) -> None:
    """One question about four pictures: four comparisons, not one; questions about a picture go to one part."""
    from datasets import load_dataset

    store = tmp_path / "arena"
    with small_arena(store, packs=(answer_pack(4),)) as small:
        for _ in range(2):
            prefers(small, 4, favourite="terse")
        exported = collect(small.arena, "text", Gates(min_votes=2), held_out=0.0)
        assert len(exported.train) == 4 and {pair.question for pair in exported.train} == {"What is this?"}
        assert all(pair.chosen.startswith("It is") and len(pair.images) == 1 for pair in exported.train)
        write(small.arena, exported, "text", tmp_path / "answers.parquet")
    rows = load_dataset("parquet", data_files=str(tmp_path / "answers.parquet"), split="train")
    assert rows[0]["chosen"][0]["role"] == "assistant" and len(rows[0]["images"]) == 1


def test_the_trainer_of_answers_trains_on_the_export(tmp_path: Path) -> None:
    """Votes on answers -> `palate export` -> three steps of DPO on a tiny LLaVA, whose loss starts at ln 2."""
    import math

    from palate.training.journal import read_journal, series
    from tests.tiny_vlm import save_tiny_vlm
    from tests.vlm.runs import run_in_process

    store, out = tmp_path / "arena", tmp_path / "answers.parquet"
    with small_arena(store, packs=(answer_pack(4),)) as small:
        prefers(small, 4, favourite="terse")
    export_command.main(["--store", str(store), "--out", str(out), "--held-out", "0"])
    run_in_process(
        {
            "out": str(tmp_path / "run"),
            "model.path": str(save_tiny_vlm("llava", tmp_path / "model")),
            "data.path": str(out),
            "data.held_out": 0,
            "train.steps": 3,
        }
    )
    losses = series(read_journal(tmp_path / "run" / "metrics.jsonl"), "train", "loss")
    assert len(losses) == 3 and losses[0][1] == pytest.approx(math.log(2), abs=1e-4)


def test_the_trainer_trains_on_the_export(tmp_path: Path) -> None:
    """Votes -> `palate export` -> three steps of Diffusion-DPO on a tiny model, whose loss starts at ln 2."""
    import math

    from palate.training.journal import read_journal, series
    from tests.t2i.runs import run_in_process

    store, out = tmp_path / "arena", tmp_path / "pairs.parquet"
    with small_arena(store, packs=(single_pack(6),)) as small:
        prefers(small, 6)
    export_command.main(["--store", str(store), "--out", str(out), "--held-out", "0"])
    tiny_sd().save_pretrained(tmp_path / "model")
    run_in_process(
        {
            "out": str(tmp_path / "run"),
            "model.path": str(tmp_path / "model"),
            "data.path": str(out),
            "data.held_out": 0,
            "train.steps": 3,
        }
    )
    losses = series(read_journal(tmp_path / "run" / "metrics.jsonl"), "train", "loss")
    assert len(losses) == 3 and losses[0][1] == pytest.approx(math.log(2), abs=1e-4)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--store", "/nowhere", "--out", "x.parquet"], "There is no arena at /nowhere"),
        ([], "Give --out PAIRS.parquet, --log FOLDER, or both"),
    ],
)
def test_what_cannot_be_exported_is_said(words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        export_command.main(words)


def test_a_store_of_both_kinds_asks_which(tmp_path: Path) -> None:
    with small_arena(tmp_path, packs=(single_pack(1), answer_pack(1))):
        pass
    with pytest.raises(UserError, match="Say which: --kind image or --kind text"):
        export_command.main(["--store", str(tmp_path), "--out", str(tmp_path / "x.parquet")])


def test_an_item_may_mix_no_kinds() -> None:
    assert PackItem("x", (PackOutput("m", text="t"),)).kind == "text"
