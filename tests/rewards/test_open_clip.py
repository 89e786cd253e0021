"""The open_clip scorer against an independent computation, against itself one row at a time, and on bad input."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from palate.errors import UserError
from palate.records import Media
from rewards import Scorer, load_scorer
from tests.rewards.conftest import CONFIG, PROMPTS
from tests.rewards.counting import count


@pytest.fixture(scope="module")
def scorer(folder):
    return load_scorer(folder, device="cpu", batch_size=3)


def _by_hand(folder, prompt: str, image: Image.Image) -> float:
    """Cosine without palate: weights into a bare CLIP, resize and crop with PIL and numpy, tokens written out."""
    model = open_clip.CLIP(**CONFIG["model_cfg"]).eval()
    model.load_state_dict(load_file(folder / "open_clip_model.safetensors"))
    width, height = (24 if side == min(image.size) else int(24 * side / min(image.size)) for side in image.size)
    small = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    top, left = round((height - 24) / 2), round((width - 24) / 2)
    crop = (small[top : top + 24, left : left + 24] - [0.4, 0.5, 0.6]) / [0.2, 0.3, 0.25]
    pixels = torch.from_numpy(crop.transpose(2, 0, 1)[None].astype(np.float32))
    tokenizer = open_clip.SimpleTokenizer()
    ids = [tokenizer.sot_token_id, *tokenizer.encode(prompt)[:10], tokenizer.eot_token_id]
    with torch.no_grad():
        v = model.encode_image(pixels)[0].double().numpy()
        t = model.encode_text(torch.tensor([ids + [0] * (12 - len(ids))]))[0].double().numpy()
    return float(v @ t / np.linalg.norm(v) / np.linalg.norm(t))


def test_scores_equal_an_independent_computation(scorer, folder, images) -> None:
    prompts = [*PROMPTS, "a red circle"]
    golden = [_by_hand(folder, p, i) for p, i in zip(prompts, images, strict=True)]
    batch = scorer.score(prompts, images)
    assert batch.values == pytest.approx(golden, abs=1e-5)
    assert np.ptp(golden) > 0.05  # the rows differ, so the comparison can fail
    assert (batch.unit, batch.dtype, batch.failures) == ("cosine", "float32", {})
    assert isinstance(scorer, Scorer)


def test_logits_are_fifty_times_the_cosine(scorer, folder, images) -> None:
    logits = load_scorer(folder, device="cpu", convention="logits").score(PROMPTS, images[:4])
    scale = float(load_file(folder / "open_clip_model.safetensors")["logit_scale"].exp())
    assert logits.unit == "logit"
    assert logits.values == pytest.approx(scale * scorer.score(PROMPTS, images[:4]).values, rel=1e-4)


def test_mixed_prompts_equal_one_at_a_time(scorer, images) -> None:
    rows = [(p, i) for i in images for p in PROMPTS]
    order = np.random.default_rng(1).permutation(len(rows))
    together = scorer.score([rows[k][0] for k in order], [rows[k][1] for k in order]).values
    alone = [scorer.score([rows[k][0]], [rows[k][1]]).values[0] for k in order]
    assert together == pytest.approx(alone, abs=1e-6)


def test_equal_content_is_encoded_once_and_scores_the_same(folder, images) -> None:
    """3 prompts x 2 images given as 24 rows, each image as PIL, its copy, PNG bytes and a Media: 3 texts, and one image
    for the pixels and one for the file each are encoded."""
    scorer = load_scorer(folder, device="cpu")
    counts = count(scorer)
    forms = []
    for image in images[:2]:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        forms.append([image, image.copy(), buffer.getvalue(), Media.image(buffer.getvalue())])
    rows = [(p, form) for k in range(2) for p in PROMPTS[:3] for form in forms[k]]
    values = scorer.score([p for p, _ in rows], [f for _, f in rows]).values.reshape(2, 3, 4)
    assert (counts.texts, counts.images) == (3, 4)
    assert np.ptp(values, axis=2).max() < 1e-6
    once = [[scorer.score([p], [image]).values[0] for p in PROMPTS[:3]] for image in images[:2]]
    assert values[:, :, 0] == pytest.approx(np.array(once), abs=1e-6)


def test_batch_size_does_not_matter(folder, images) -> None:
    prompts = [f"{p} {k}" for k in range(3) for p in PROMPTS[:3]]
    many = [images[k % 5] for k in range(9)]
    one, seven = (load_scorer(folder, device="cpu", batch_size=b).score(prompts, many).values for b in (1, 7))
    assert one == pytest.approx(seven, abs=1e-6)


def test_a_long_prompt_keeps_its_end_mark_and_is_flagged(scorer, folder, images) -> None:
    """12 tokens fit: start, the first 10 of the words, end. What follows them changes nothing."""
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    fits, longer, other = " ".join(words), " ".join([*words, "eleven"]), " ".join([*words[:9], "eleven"])
    batch = scorer.score([fits, longer, other, longer], [images[0]] * 3 + [None])
    assert batch.values[0] == batch.values[1] != batch.values[2]
    assert batch.values[1] == pytest.approx(_by_hand(folder, fits, images[0]), abs=1e-5)
    assert batch.truncated == {1}  # the last row has no score, so nothing of it was cut


def test_failed_rows_are_nan_with_a_reason_and_leave_the_rest(scorer, images, tmp_path) -> None:
    torn = tmp_path / "torn.png"
    images[4].save(torn)
    torn.write_bytes(torn.read_bytes()[:2000])
    prompts = ["a red circle"] * 4 + [" ", "a red circle", "a red circle"]
    given = [images[0], tmp_path / "missing.png", torn, None, images[1], b"text", images[1]]
    batch = scorer.score(prompts, given)
    assert np.isnan(batch.values).tolist() == [False, True, True, True, True, True, False]
    assert batch.values[[0, 6]] == pytest.approx(scorer.score(prompts[:2], images[:2]).values, abs=1e-6)
    assert sorted(batch.failures) == [1, 2, 3, 4, 5]
    assert "missing.png" in batch.failures[1] and "torn.png" in batch.failures[2]
    assert batch.failures[3] == "There is no image." and batch.failures[4] == "The prompt is empty."
    assert "not an image" in batch.failures[5]
    with pytest.raises(UserError, match=r"could not score 5 of 7 rows \(row 1: .*Repair or leave out"):
        batch.complete()


def test_a_score_that_is_not_finite_is_a_failure(folder, images) -> None:
    scorer = load_scorer(folder, device="cpu")
    towers = scorer.towers
    scorer.embedder.towers = replace(towers, encode_image=lambda pixels: towers.encode_image(pixels) * torch.inf)
    batch = scorer.score(PROMPTS[:2], images[:2])
    assert np.isnan(batch.values).all()
    assert "not a finite number in float32" in batch.failures[0]


def test_nothing_to_score_is_an_empty_batch(scorer) -> None:
    assert scorer.score([], []).values.shape == (0,)
    assert np.isnan(scorer.score(["a"], [None]).values).all()


def test_refusals(scorer, images) -> None:
    with pytest.raises(UserError, match="got 2 prompts and 1 images"):
        scorer.score(["a", "b"], images[:1])
    with pytest.raises(UserError, match=r"Write \[prompt\] \* len\(images\)"):
        scorer.score("a prompt", images)
    with pytest.raises(UserError, match="Prompt 1 must be a text, not NoneType"):
        scorer.score(["a", None], images[:2])


def test_transparency_and_orientation_are_honoured(scorer, images) -> None:
    """A clear image is a white one, and a picture stored on its side with the EXIF note is the upright one."""
    clear = Image.new("RGBA", (24, 24), (255, 0, 0, 0))
    white = Image.new("RGB", (24, 24), "white")
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    images[1].rotate(90, expand=True).save(buffer, "PNG", exif=exif)
    values = scorer.score(["a"] * 4, [clear, white, buffer.getvalue(), images[1]]).values
    assert values[0] == pytest.approx(values[1], abs=1e-7)
    assert values[2] == pytest.approx(values[3], abs=1e-6)


def test_embeddings_are_unit_vectors_in_order(scorer, images) -> None:
    found = scorer.embed_images([images[0], None, images[1], images[0]])
    assert torch.isnan(found[1]).all() and torch.equal(found[0], found[3])
    assert found[[0, 2]].norm(dim=1) == pytest.approx(torch.ones(2), abs=1e-6)
    texts = scorer.embed_prompts(["a", "b", "a", "c"])
    assert torch.equal(texts[0], texts[2]) and texts.shape == (4, 16)
    cosine = float((found[2] * texts[1]).sum())
    assert cosine == pytest.approx(scorer.score(["b"], [images[1]]).values[0], abs=1e-6)


def test_low_precision_stays_close(scorer, folder, images) -> None:
    full = scorer.score(PROMPTS, images[:4]).values
    for dtype, tolerance in (("float16", 5e-3), ("bfloat16", 3e-2)):
        batch = load_scorer(folder, device="cpu", dtype=dtype).score(PROMPTS, images[:4])
        assert batch.dtype == dtype
        assert batch.values == pytest.approx(full, abs=tolerance)


def test_the_hash_names_the_weights(scorer, folder, images, tmp_path) -> None:
    copy, changed = tmp_path / "copy", tmp_path / "changed"
    shutil.copytree(folder, copy)
    shutil.copytree(folder, changed)
    weights = load_file(changed / "open_clip_model.safetensors")
    weights["logit_scale"] += 1e-3
    save_file(weights, str(changed / "open_clip_model.safetensors"))
    assert load_scorer(copy).weights == scorer.weights == scorer.score([], []).weights
    assert load_scorer(changed).weights != scorer.weights
    assert "mean 0.4/0.5/0.6" in scorer.preprocess and "24x24" in scorer.preprocess


def test_random_weights_come_from_the_seed_and_leave_the_global_one_alone(folder, images, tmp_path) -> None:
    shutil.copy(folder / "open_clip_config.json", tmp_path)
    torch.manual_seed(11)
    before = torch.get_rng_state()
    one, same, other = (load_scorer(tmp_path, seed=s, device="cpu") for s in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), before)
    values = [s.score(PROMPTS, images[:4]).values for s in (one, same, other)]
    assert np.array_equal(values[0], values[1]) and not np.allclose(values[0], values[2])
    assert one.weights == same.weights != other.weights


def test_a_known_architecture_loads_a_checkpoint_file(folder, images, scorer, tmp_path) -> None:
    (tmp_path / "Tiny-For-Test.json").write_text(json.dumps(CONFIG["model_cfg"]))
    open_clip.add_model_config(tmp_path / "Tiny-For-Test.json")
    checkpoint = tmp_path / "weights.pt"
    torch.save({"state_dict": load_file(folder / "open_clip_model.safetensors")}, checkpoint)
    by_option = load_scorer("open_clip", source="Tiny-For-Test", pretrained=checkpoint, device="cpu")
    by_name = load_scorer(f"open_clip:Tiny-For-Test:{checkpoint}", device="cpu")
    assert by_name.name == "open_clip:Tiny-For-Test:weights"
    assert by_option.weights == by_name.weights
    # The file has no preprocessing of its own, so the architecture's applies: OpenAI's mean and deviation.
    assert by_name.preprocess != scorer.preprocess
    assert np.array_equal(by_option.score(PROMPTS, images[:4]).values, by_name.score(PROMPTS, images[:4]).values)
    with pytest.raises(UserError, match="is neither a file nor a tag of Tiny-For-Test. Its tags: none"):
        load_scorer("open_clip:Tiny-For-Test:nowhere.pt")
    with pytest.raises(UserError, match="give one of them"):
        load_scorer(f"open_clip:Tiny-For-Test:{checkpoint}", pretrained=checkpoint)


def test_a_hub_model_is_read_from_the_cache_at_its_revision(folder, scorer, images, tmp_path, monkeypatch) -> None:
    """The cache's own layout, written by hand: refs name a commit, snapshots hold its files."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "models--someone--tiny"
    shutil.copytree(folder, repo / "snapshots" / commit)
    (repo / "refs").mkdir()
    (repo / "refs" / "v1").write_text(commit)
    hub = load_scorer("hf-hub:someone/tiny@v1", device="cpu")
    assert hub.name == "open_clip:someone/tiny@v1"
    assert hub.weights == scorer.weights
    assert hub.score(PROMPTS, images[:4]).values == pytest.approx(scorer.score(PROMPTS, images[:4]).values, abs=1e-6)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        load_scorer("hf-hub:someone/other")


def test_offline_tags_say_what_to_do(monkeypatch) -> None:
    def unreachable(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(open_clip, "download_pretrained", unreachable)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set.*download it first"):
        load_scorer("open_clip:ViT-B-32:laion2b_s34b_b79k")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("open_clip:ViT-B-3", {}, "Unknown open_clip architecture 'ViT-B-3'; did you mean ViT-B-32"),
        ("open_clip:ViT-B-32", {}, "ViT-B-32 needs weights: pretrained=FILE, or one of the tags .*laion2b_s34b_b79k"),
        ("open_clip", {}, "Which open_clip model"),
        ("open_clip:ViT-B-32", {"seed": 0, "convention": "cosin"}, "Unknown convention 'cosin'; did you mean 'cosine'"),
        ("open_clip:ViT-B-32", {"seed": 0, "dtype": "fp16"}, "Unknown dtype 'fp16'"),
        ("open_clip:ViT-B-32", {"seed": 0, "batch_size": 0}, "at least 1; got 0"),
        ("open_clip:ViT-B-32", {"seed": 0, "device": "gpu"}, "Unknown device 'gpu'"),
        ("open_clip:ViT-B-32", {"seed": 0, "device": "cuda:99"}, "There is no cuda:99"),
        ("local-dir:/nowhere", {}, "There is no folder /nowhere"),
    ],
)
def test_what_cannot_be_loaded_says_why(name, options, message) -> None:
    with pytest.raises(UserError, match=message):
        load_scorer(name, **options)


def test_broken_folders_say_why(folder, tmp_path) -> None:
    with pytest.raises(UserError, match="holds no open_clip_config.json"):
        load_scorer(tmp_path)
    shutil.copy(folder / "open_clip_config.json", tmp_path)
    with pytest.raises(UserError, match="no weights, such as open_clip_model.safetensors"):
        load_scorer(tmp_path)
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="Check that the checkpoint is whole"):
        load_scorer(tmp_path)
    with pytest.raises(UserError, match="brings its own weights"):
        load_scorer(folder, pretrained="x.pt")
