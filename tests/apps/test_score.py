"""`palate score`: what it writes for folders and pairs, and that nothing that failed is silent."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from apps.score import main
from apps.score_source import whereabouts
from palate.errors import UserError
from palate.readers import write_pairs
from palate.records import Media, Pair
from palate.toy.taste import taste
from palate.toy.world import caption, render, sample_scene
from rewards import ScoreBatch


@pytest.fixture
def scenes() -> list[tuple[str, Image.Image]]:
    rng = np.random.default_rng(2)
    return [(caption(s), render(s)) for s in (sample_scene(rng) for _ in range(12))]


@pytest.fixture
def folder(scenes, tmp_path):
    path = tmp_path / "images"
    path.mkdir()
    lines = []
    for k, (prompt, image) in enumerate(scenes):
        image.save(path / f"{k}.png")
        lines.append(json.dumps({"file_name": f"{k}.png", "prompt": prompt, "seed": k}))
    (path / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return path


class Interrupted:
    """A scorer that scores by the width of its calls, and that the machine kills in a chosen one."""

    name, unit = "interrupted", "u"

    def __init__(self, killed_in: int) -> None:
        self.calls, self.killed_in, self.rows = 0, killed_in, 0

    def score(self, prompts, images) -> ScoreBatch:
        self.calls += 1
        if self.calls == self.killed_in:
            raise MemoryError
        self.rows += len(prompts)
        return ScoreBatch(np.array([float(len(p)) for p in prompts]), self.name, self.unit, "w", "p")


def test_a_folder_gets_one_column_per_scorer(folder, scenes, tmp_path, capsys) -> None:
    out = tmp_path / "out" / "scores.parquet"
    main(["--scorer", "toy-taste", "--scorer", "toy-visual", "--data", str(folder), "--out", str(out)])
    table = pq.read_table(out)
    assert table.column_names == ["row", "file_name", "prompt", "toy-taste", "toy-visual"]
    by_hand = [taste(prompt, image) for prompt, image in scenes]
    assert table["toy-taste"].to_pylist() == [t.total for t in by_hand]
    assert table["toy-visual"].to_pylist() == [t.visual for t in by_hand]
    made_by = json.loads(table.schema.metadata[b"palate"])
    assert made_by["scorers"]["toy-taste"]["unit"] == "taste" and len(made_by["scorers"]["toy-taste"]["weights"]) == 32
    assert "toy-taste: mean 0." in capsys.readouterr().out
    assert [p.name for p in out.parent.iterdir()] == ["scores.parquet"]


def test_failed_rows_are_empty_listed_and_told_by_the_exit_status(folder, tmp_path, capsys) -> None:
    (folder / "3.png").write_bytes(b"torn")
    (folder / "4.png").unlink()
    with (folder / "metadata.jsonl").open("a") as file:
        file.write('{"file_name": "0.png"}\n{"file_name": "0.png", "prompt": "a fox"}\nnot json\n')
        file.write('{"file_name": "0.png", "prompt": "a red circle", "flagged": true}\n')
    out = tmp_path / "scores.parquet"
    with pytest.raises(SystemExit) as stop:
        main(["--scorer", "toy-taste", "--data", str(folder), "--out", str(out), "--batch-size", "2"])
    assert stop.value.code == 1
    table = pq.read_table(out)
    empty = np.isnan(table["toy-taste"].to_numpy())
    assert table["row"].to_numpy()[empty].tolist() == [3, 4, 13]
    listed = [json.loads(line) for line in (tmp_path / "scores.failed.jsonl").read_text().splitlines()]
    assert [f["row"] for f in listed] == [3, 4, 12, 13, 14, 15]
    assert "not an image" in listed[0]["reason"] and "4.png" in listed[1]["reason"]
    assert "blacked out" in listed[5]["reason"]
    assert "6 scores failed" in capsys.readouterr().err


def test_pairs_get_both_sides_and_the_agreement(scenes, tmp_path, capsys) -> None:
    """Each true picture against the next one's; the label that is a tie is left out of the agreement."""
    images = [Media.image(image) for _, image in scenes]
    pairs = [
        Pair(prompt, images[k], images[(k + 1) % len(images)], p_chosen=0.5 if k == 0 else 1.0)
        for k, (prompt, _) in enumerate(scenes)
    ]
    write_pairs(pairs, tmp_path / "pairs.parquet")
    out = tmp_path / "scores.parquet"
    main(
        ["--scorer", "toy-semantic", "--data", str(tmp_path / "pairs.parquet"), "--out", str(out), "--batch-size", "2"]
    )
    table = pq.read_table(out)
    assert table["pair"].to_pylist() == [pair.id for pair in pairs]
    chosen, rejected = (np.array(table[f"toy-semantic/{side}"].to_pylist()) for side in ("chosen", "rejected"))
    assert chosen.tolist() == [taste(prompt, image).semantic for prompt, image in scenes]
    agreement = 100 * np.mean((0.5 + 0.5 * np.sign(chosen - rejected))[1:])
    assert f"agrees with {agreement:.1f} % [" in capsys.readouterr().out
    assert agreement > 80


def test_every_picture_of_pairs_is_decoded_once(scenes, tmp_path, monkeypatch) -> None:
    """Two scorers that share a decode, over pairs of pictures that no other pair has."""
    images = [Media.image(image) for _, image in scenes]
    pairs = [Pair(scenes[k][0], images[k], images[k + 1]) for k in range(0, len(images) - 1, 2)]
    write_pairs(pairs, tmp_path / "pairs.parquet")
    calls: list[str] = []
    plain = Media.decode

    def decode(self: Media) -> Image.Image:
        calls.append(self.id)
        return plain(self)

    monkeypatch.setattr(Media, "decode", decode)
    names = ["--scorer", "toy-semantic", "--scorer", "toy-visual"]
    main([*names, "--data", str(tmp_path / "pairs.parquet"), "--out", str(tmp_path / "scores.parquet")])
    assert sorted(calls) == sorted({media.id for pair in pairs for media in (pair.chosen, pair.rejected)})


def test_a_stopped_run_goes_on(folder, scenes, tmp_path, monkeypatch, capsys) -> None:
    """12 rows in chunks of 4. Killed in the second chunk, the first is kept; the second run scores the other 8 and no
    more, and the table is that of a run that never stopped."""
    import rewards

    out = tmp_path / "scores.parquet"
    argv = ["--scorer", "any", "--data", str(folder), "--out", str(out), "--batch-size", "1"]
    killed, second = Interrupted(killed_in=2), Interrupted(killed_in=0)
    monkeypatch.setattr(rewards, "load_scorer", lambda name, **options: killed)
    with pytest.raises(MemoryError):
        main(argv)
    assert not out.exists() and killed.rows == 4
    assert "Broke off; 4 rows or more are kept" in capsys.readouterr().err
    monkeypatch.setattr(rewards, "load_scorer", lambda name, **options: second)
    main(argv)
    assert second.rows == 8
    assert "4 of 12 rows are scored" in capsys.readouterr().err
    table = pq.read_table(out)
    assert table["row"].to_pylist() == list(range(12))
    assert table["interrupted"].to_pylist() == [float(len(prompt)) for prompt, _ in scenes]
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("scores")] == ["scores.parquet"]


@pytest.mark.launch
def test_a_killed_process_leaves_its_chunks(folder, scenes, tmp_path, monkeypatch) -> None:
    """The scorer kills its own process in the third chunk, as the machine would; the next run scores the last 4 rows."""
    (tmp_path / "deadly.py").write_text(
        textwrap.dedent(
            """
            import os, signal
            from pathlib import Path
            from tests.apps.test_score import Interrupted

            class Deadly(Interrupted):
                def score(self, prompts, images):
                    calls = Path(__file__).with_suffix(".calls")
                    calls.open("a").write("x")
                    if len(calls.read_text()) == 3:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return super().score(prompts, images)

            def make():
                return Deadly(killed_in=0)
            """
        )
    )
    out = tmp_path / "scores.parquet"
    argv = ["--scorer", "deadly:make", "--data", str(folder), "--out", str(out), "--batch-size", "1"]
    places = os.pathsep.join([str(tmp_path), os.getcwd()])
    killed = subprocess.run(
        [sys.executable, "-m", "apps.score", *argv], env={**os.environ, "PYTHONPATH": places}, check=False
    )
    assert killed.returncode == -signal.SIGKILL and not out.exists()
    monkeypatch.syspath_prepend(tmp_path)
    main(argv)
    assert (tmp_path / "deadly.calls").read_text() == "xxxx"
    assert pq.read_table(out)["interrupted"].to_pylist() == [float(len(prompt)) for prompt, _ in scenes]


def test_a_stopped_run_of_another_kind_is_not_mixed_in(folder, tmp_path, monkeypatch) -> None:
    import rewards

    out = tmp_path / "scores.parquet"
    argv = ["--scorer", "any", "--data", str(folder), "--out", str(out)]
    monkeypatch.setattr(rewards, "load_scorer", lambda name, **options: Interrupted(killed_in=2))
    with pytest.raises(MemoryError):
        main([*argv, "--batch-size", "1"])
    for other in (["--batch-size", "2"], ["--batch-size", "1", "--limit", "8"]):
        with pytest.raises(UserError, match="run that was stopped, of another kind.*differ"):
            main([*argv, *other])
    (folder / "metadata.jsonl").write_text((folder / "metadata.jsonl").read_text().replace("red", "blue"))
    with pytest.raises(UserError, match="data differ"):
        main([*argv, "--batch-size", "1"])


def test_a_stopped_run_does_not_go_on_with_other_images_of_the_same_prompts(folder, tmp_path, monkeypatch) -> None:
    """Two models' folders hold equal metadata; a table that was written anew has equal prompts."""
    import rewards

    out, other = tmp_path / "scores.parquet", tmp_path / "other"
    shutil.copytree(folder, other)
    argv = ["--scorer", "any", "--out", str(out), "--batch-size", "1", "--data"]
    monkeypatch.setattr(rewards, "load_scorer", lambda name, **options: Interrupted(killed_in=2))
    with pytest.raises(MemoryError):
        main([*argv, str(folder)])
    with pytest.raises(UserError, match="path differ"):
        main([*argv, str(other)])
    monkeypatch.setattr(rewards, "load_scorer", lambda name, **options: Interrupted(killed_in=0))
    main([*argv, str(folder / ".." / folder.name)])  # the same folder by another name
    table = tmp_path / "table.parquet"
    table.write_bytes(out.read_bytes())
    before = whereabouts(str(table))
    os.utime(table, ns=(1, 1))
    assert whereabouts(str(table)) != before
    assert whereabouts("owner/name@main") == "owner/name@main"


def test_failures_survive_the_stop(folder, tmp_path, monkeypatch, capsys) -> None:
    """A row that failed in the first run is in the list of the second."""
    import rewards

    (folder / "metadata.jsonl").write_text("not json\n" + (folder / "metadata.jsonl").read_text())
    lines = (folder / "metadata.jsonl").read_text().splitlines()
    (folder / "metadata.jsonl").write_text("\n".join([lines[1], lines[0], *lines[2:]]) + "\n")
    out = tmp_path / "scores.parquet"
    argv = ["--scorer", "any", "--data", str(folder), "--out", str(out), "--batch-size", "1"]
    monkeypatch.setattr(rewards, "load_scorer", lambda name, **options: Interrupted(killed_in=2))
    with pytest.raises(MemoryError):
        main(argv)
    monkeypatch.setattr(rewards, "load_scorer", lambda name, **options: Interrupted(killed_in=0))
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 1
    (listed,) = [json.loads(line) for line in (tmp_path / "scores.failed.jsonl").read_text().splitlines()]
    assert listed["row"] == 1 and "metadata.jsonl" in listed["reason"]


def test_a_chunk_in_which_nothing_can_be_read_is_passed(folder, tmp_path) -> None:
    """Rows 4 to 7 are one chunk, and none of them is a line of JSON."""
    lines = (folder / "metadata.jsonl").read_text().splitlines()
    (folder / "metadata.jsonl").write_text("\n".join([*lines[:4], *["?"] * 4, *lines[4:6]]) + "\n")
    out = tmp_path / "scores.parquet"
    with pytest.raises(SystemExit):
        main(["--scorer", "toy-taste", "--data", str(folder), "--out", str(out), "--batch-size", "1"])
    assert pq.read_table(out)["row"].to_pylist() == [0, 1, 2, 3, 8, 9]


def test_nothing_to_score_is_said(folder, tmp_path) -> None:
    (folder / "metadata.jsonl").write_text('{"file_name": 3}\n')
    with pytest.raises(UserError, match="nothing to score. row 0"):
        main(["--scorer", "toy-taste", "--data", str(folder), "--out", str(tmp_path / "s.parquet")])
    assert [p.name for p in tmp_path.iterdir()] == ["images"]


@pytest.mark.launch
def test_two_processes_write_what_one_writes(folder, tmp_path) -> None:
    """Two processes in the variables that accelerate launch sets, chunks shared out; the table is the same."""
    one, two = tmp_path / "one.parquet", tmp_path / "two.parquet"
    common = ["--scorer", "toy-taste", "--scorer", "toy-visual", "--data", str(folder), "--batch-size", "1", "--out"]
    main([*common, str(one)])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "apps.score", *common, str(two)],
            env={**os.environ, **group, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    said = [process.communicate() for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    assert pq.read_table(two).equals(pq.read_table(one))
    assert "12 rows in" in said[0][0] and not said[1][0]


def test_a_folder_of_images_takes_prompts_from_beside_them(scenes, tmp_path) -> None:
    """Names in order, those of folders within too; without a text the prompt is empty, which fails a scorer that reads."""
    folder = tmp_path / "plain"
    (folder / "b").mkdir(parents=True)
    for name, (prompt, image) in zip(("a.png", "b/c.jpg", "d.webp"), scenes, strict=False):
        image.save(folder / name)
        if name != "d.webp":
            (folder / name).with_suffix(".txt").write_text(prompt + "\n")
    out = tmp_path / "s.parquet"
    with pytest.raises(SystemExit):
        main(["--scorer", "toy-taste", "--data", str(folder), "--out", str(out)])
    table = pq.read_table(out)
    assert table["file_name"].to_pylist() == ["a.png", "b/c.jpg", "d.webp"]
    assert table["prompt"].to_pylist() == [scenes[0][0], scenes[1][0], ""]
    assert table["toy-taste"][0].as_py() == taste(*scenes[0]).total and table["toy-taste"][2].as_py() is None


def test_a_table_of_prompts_and_images_is_scored(scenes, tmp_path) -> None:
    """As datasets stores images: bytes in a struct."""
    import datasets

    features = datasets.Features({"caption": datasets.Value("string"), "image": datasets.Image()})
    rows = {"caption": [p for p, _ in scenes], "image": [image for _, image in scenes]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "t.parquet")
    out = tmp_path / "s.parquet"
    main(["--scorer", "toy-taste", "--data", str(tmp_path / "t.parquet"), "--out", str(out), "--limit", "5"])
    table = pq.read_table(out)
    assert table.column_names == ["row", "prompt", "toy-taste"]
    assert table["toy-taste"].to_pylist() == [taste(prompt, image).total for prompt, image in scenes[:5]]


def test_the_cache_spares_the_second_run(folder, tmp_path, monkeypatch) -> None:
    from rewards.towers import Towers

    argv = ["--scorer", "toy", "--data", str(folder), "--cache", str(tmp_path / "cache"), "--device", "cpu", "--out"]
    main([*argv, str(tmp_path / "one.parquet")])
    monkeypatch.setattr(Towers, "images", None)
    monkeypatch.setattr(Towers, "texts", None)
    main([*argv, str(tmp_path / "two.parquet")])
    one, two = (pq.read_table(tmp_path / f"{name}.parquet")["toy"].to_pylist() for name in ("one", "two"))
    assert one == two


def test_prompts_that_were_cut_are_counted(folder, tmp_path, capsys) -> None:
    with (folder / "metadata.jsonl").open("a") as file:
        file.write(json.dumps({"file_name": "0.png", "prompt": "a red circle " * 50}) + "\n")
    main(["--scorer", "toy", "--data", str(folder), "--device", "cpu", "--out", str(tmp_path / "s.parquet")])
    assert "toy: 1 prompts were longer than the model reads" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--out", "scores.csv"], "must end in .parquet"),
        (["--scorer", "toy-tast"], "did you mean 'toy-taste'"),
        (["--scorer", "toy-taste"], "call themselves the same: toy-taste, toy-taste"),
        (["--data", "/nowhere/at/all"], "nowhere"),
        (["--limit", "0"], "--limit must be at least 1; got 0"),
        (["--batch-size", "0"], "--batch-size must be at least 1; got 0"),
    ],
)
def test_refusals(folder, tmp_path, changes, message) -> None:
    argv = ["--scorer", "toy-taste", "--data", str(folder), "--out", str(tmp_path / "s.parquet"), *changes]
    with pytest.raises(UserError, match=message):
        main(argv)


def test_help_is_light() -> None:
    code = "import sys\ntry:\n import apps.score as s; s.main(['--help'])\nexcept SystemExit: pass\n"
    code += "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0
