"""HPSv2, PickScore and CLIPScore on random weights in their authors' formats, against the formula written out."""

from __future__ import annotations

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv
from transformers import CLIPModel

from palate.errors import UserError
from rewards import load_scorer
from tests.rewards.conftest import PROMPTS
from tests.rewards.official import ARCHITECTURE, MODEL

MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])
LONG = " ".join(["a very long story of many words"] * 20)


@pytest.fixture(scope="module")
def hps(published):
    return load_scorer("hpsv2", source=str(published), architecture=ARCHITECTURE, device="cpu")


@pytest.fixture(scope="module")
def pickscore(published):
    return load_scorer(f"pickscore:{published / 'PickScore_v1'}", device="cpu")


def _tokens(prompt: str, length: int = 77) -> torch.Tensor:
    """Return CLIP's ids, the end mark kept in the last place where the text is cut."""
    tokenizer = open_clip.SimpleTokenizer()
    words = tokenizer.encode(prompt)[: length - 2]
    ids = [tokenizer.sot_token_id, *words, tokenizer.eot_token_id]
    return torch.tensor([ids + [0] * (length - len(ids))])


def _crop(image: Image.Image, size: int, half) -> torch.Tensor:
    """Return (1, 3, size, size): shortest side by Pillow, centre by `half`, normalised."""
    scale = size / min(image.size)
    width, height = (size if side == min(image.size) else int(side * scale) for side in image.size)
    small = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float64) / 255
    top, left = half(height - size), half(width - size)
    pixels = (small[top : top + size, left : left + size] - MEAN) / STD
    return torch.from_numpy(pixels.transpose(2, 0, 1)[None].astype(np.float32))


def _cosine(image: torch.Tensor, text: torch.Tensor) -> float:
    a, b = image[0].double().numpy(), text[0].double().numpy()
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def _open_clip(published) -> open_clip.CLIP:
    model = open_clip.CLIP(**MODEL).eval()
    state = torch.load(published / "HPS_v2_compressed.pt", weights_only=True)["state_dict"]
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return model


@torch.no_grad()
def test_hpsv2_is_the_cosine_after_padding(hps, published, images) -> None:
    model, prompts = _open_clip(published), [*PROMPTS, LONG]
    golden = []
    for prompt, image in zip(prompts, images, strict=True):
        x = tv.to_tensor(image)
        scale = 24 / max(image.size)
        height, width = round(image.height * scale), round(image.width * scale)
        x = tv.resize(x, [height, width], InterpolationMode.BICUBIC, antialias=True)
        x = torch.nn.functional.pad(
            x,
            [(24 - width) // 2, 24 - width - (24 - width) // 2, (24 - height) // 2, 24 - height - (24 - height) // 2],
        )
        pixels = ((x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)).float()[None]
        golden.append(_cosine(model.encode_image(pixels), model.encode_text(_tokens(prompt))))
    batch = hps.score(prompts, images)
    assert batch.values == pytest.approx(golden, abs=1e-5)
    assert np.ptp(golden) > 0.05
    assert (batch.scorer, batch.unit, batch.dtype, batch.truncated) == ("hpsv2", "cosine", "float32", {4})
    assert len(batch.weights) == 32 and "hpsv2 rounding" in batch.preprocess


def test_hpsv2_without_antialias_says_so_and_differs(hps, published, images) -> None:
    old = load_scorer("hpsv2", source=str(published), architecture=ARCHITECTURE, antialias=False, device="cpu")
    assert old.preprocess != hps.preprocess and "without antialias" in old.preprocess
    assert old.score(PROMPTS[:1], images[4:]).values != pytest.approx(
        hps.score(PROMPTS[:1], images[4:]).values, abs=1e-4
    )
    assert old.towers.model is hps.towers.model  # one load per process


@torch.no_grad()
def test_pickscore_is_the_logit_of_the_hugging_face_model(pickscore, published, images) -> None:
    """exp(logit_scale) = 100; pooled by hand at the end mark, with no tokenizer or processor of transformers."""
    model = CLIPModel.from_pretrained(published / "PickScore_v1").eval()
    prompts = [*PROMPTS, LONG]
    golden = []
    for prompt, image in zip(prompts, images, strict=True):
        ids = _tokens(prompt)
        hidden = model.text_model(input_ids=ids).last_hidden_state[0, int(ids[0].argmax())]
        seen = model.vision_model(pixel_values=_crop(image, 24, lambda rest: rest // 2)).pooler_output
        text, picture = model.text_projection(hidden[None]), model.visual_projection(seen)
        golden.append(100 * _cosine(picture, text))
    batch = pickscore.score(prompts, images)
    assert batch.values == pytest.approx(golden, abs=1e-3)
    assert np.ptp(golden) > 5
    assert (batch.scorer, batch.unit, batch.truncated) == ("pickscore", "logit", {4})


@pytest.mark.parametrize(
    ("name", "formula", "prefix", "unit"),
    [
        ("clipscore", lambda cosine, scale: 2.5 * max(cosine, 0), "A photo depicts ", "2.5 cosine"),
        ("clipscore-cosine", lambda cosine, scale: cosine, "", "cosine"),
        ("clipscore-torchmetrics", lambda cosine, scale: 100 * max(cosine, 0), "", "100 cosine"),
        ("clipscore-logits", lambda cosine, scale: scale * cosine, "", "logit"),
    ],
)
@torch.no_grad()
def test_each_convention_of_clipscore_is_its_formula(name, formula, prefix, unit, published, images) -> None:
    model = _open_clip(published)
    scale = float(model.logit_scale.exp())
    golden = [
        formula(
            _cosine(
                model.encode_image(_crop(image, 24, lambda rest: round(rest / 2))),
                model.encode_text(_tokens(prefix + prompt)),
            ),
            scale,
        )
        for prompt, image in zip(PROMPTS, images, strict=False)
    ]
    scorer = load_scorer(f"{name}:{ARCHITECTURE}:{published / 'HPS_v2_compressed.pt'}", device="cpu")
    batch = scorer.score(PROMPTS, images[:4])
    assert batch.values == pytest.approx(golden, rel=2e-5, abs=1e-5)
    assert batch.unit == unit and batch.scorer.startswith(name + ":")
    assert min(golden) == 0 if "max" in formula.__code__.co_names else min(golden) < 0


@pytest.mark.parametrize("name", ["hps", "pickscore"])
def test_the_way_of_tensors_gives_the_same_scores_and_gradients(name, request, images) -> None:
    """On pixels of whole levels the scores are those of the pictures; a step along the gradient raises the score."""
    scorer = request.getfixturevalue(name)
    levels = torch.from_numpy(np.stack([np.asarray(image.resize((40, 30))) for image in images[:3]]))
    pixels = (levels.permute(0, 3, 1, 2) / 255).requires_grad_()
    scores = scorer.score_tensor(PROMPTS[:3], pixels)
    spread = 100 if name == "pickscore" else 1
    assert scores.detach().numpy() == pytest.approx(
        scorer.score(PROMPTS[:3], list(levels.numpy())).values, abs=2e-4 * spread
    )
    scores.sum().backward()
    assert (pixels.grad.flatten(1).norm(dim=1) > 0).all()
    better = (pixels + 0.05 * pixels.grad / pixels.grad.abs().amax((1, 2, 3), keepdim=True)).detach()
    assert (scorer.score_tensor(PROMPTS[:3], better) > scores).all()


@pytest.mark.parametrize("name", ["hps", "pickscore"])
def test_low_precision_keeps_the_temperature_and_stays_near(name, request, published, images) -> None:
    """Of bfloat16's 8 bits a cosine keeps about .02; the temperature, ln 100, is not rounded at all."""
    exact = request.getfixturevalue(name)
    source = {"hps": ("hpsv2", published), "pickscore": ("pickscore", published / "PickScore_v1")}[name]
    architecture = {"architecture": ARCHITECTURE} if name == "hps" else {}
    low = load_scorer(source[0], source=str(source[1]), device="cpu", dtype="bfloat16", **architecture)
    assert low.towers.scale == pytest.approx(exact.towers.scale, rel=1e-6)
    batch = low.score(PROMPTS, images[:4])
    spread = 100 if name == "pickscore" else 1
    assert batch.dtype == "bfloat16"
    assert batch.values == pytest.approx(exact.score(PROMPTS, images[:4]).values, abs=0.02 * spread)


def test_tensors_that_do_not_fit_are_refused(hps) -> None:
    for prompts, given, message in (
        (["a"], torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "float tensor"),
        (["a"], torch.zeros(3, 8, 8), "float tensor"),
        (["a"], np.zeros((1, 3, 8, 8)), "got ndarray"),
        (["a", "b"], torch.zeros(1, 3, 8, 8), "2 prompts and 1 images"),
        (["a", ""], torch.zeros(2, 3, 8, 8), "not empty"),
        ("a", torch.zeros(1, 3, 8, 8), "list of prompts"),
    ):
        with pytest.raises(UserError, match=message):
            hps.score_tensor(prompts, given)


def test_official_files_are_told_from_others_by_name(published, tmp_path) -> None:
    copy = tmp_path / "mine.pt"
    copy.write_bytes((published / "HPS_v2_compressed.pt").read_bytes())
    own = load_scorer(f"hpsv2.1:{copy}", architecture=ARCHITECTURE, device="cpu")
    assert own.name == "hpsv2.1:mine"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("hpsv2", {}, "HF_HUB_OFFLINE is set"),
        ("pickscore", {}, "HF_HUB_OFFLINE is set"),
        ("hpsv2:/nowhere/x.pt", {}, "There is no file /nowhere/x.pt"),
        ("pickscore", {"source": "/nowhere"}, "neither a local path|No model /nowhere"),
        ("hpsv2", {"colour": 1}, "does not take these options.*antialias"),
        ("clipscore", {"convention": "cosin", "source": f"{ARCHITECTURE}", "seed": 0}, "Unknown convention 'cosin'"),
    ],
)
def test_what_cannot_be_loaded_says_why(name, options, message, published) -> None:
    with pytest.raises(UserError, match=message):
        load_scorer(name, device="cpu", **options)


def test_weights_of_another_model_are_refused_by_their_names(published, tmp_path) -> None:
    state = torch.load(published / "HPS_v2_compressed.pt", weights_only=True)["state_dict"]
    del state["ln_final.bias"]
    state["visual.extra"] = torch.zeros(3)
    state["visual.proj"] = torch.zeros(2, 2)
    torch.save({"state_dict": state}, tmp_path / "other.pt")
    with pytest.raises(
        UserError, match="it lacks ln_final.bias; it has besides visual.extra; other shapes have visual.proj"
    ):
        load_scorer(f"hpsv2:{tmp_path / 'other.pt'}", architecture=ARCHITECTURE, device="cpu")


def test_the_official_architecture_has_the_names_of_the_official_checkpoint() -> None:
    """HPS_v2_compressed.pt has 686 entries, those of open_clip's ViT-H-14. Made without memory."""
    from accelerate import init_empty_weights

    with init_empty_weights():
        model = open_clip.CLIP(**open_clip.get_model_config("ViT-H-14"))
    assert len(model.state_dict()) == 686
