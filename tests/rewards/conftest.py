"""A random miniature open_clip model, made once per session."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.rewards import official

CONFIG = {
    "model_cfg": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 24, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
    },
    "preprocess_cfg": {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25], "interpolation": "bicubic"},
}
PROMPTS = ["a red circle", "a blue square", "two green triangles", "café ☕ at night"]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An open_clip folder with random weights of seed 3, whose temperature is 50."""
    path = tmp_path_factory.mktemp("tiny_clip")
    (path / "open_clip_config.json").write_text(json.dumps(CONFIG))
    torch.manual_seed(3)
    model = open_clip.create_model(f"local-dir:{path}", load_weights=False)
    with torch.no_grad():
        model.logit_scale.fill_(np.log(50.0))
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter) if parameter.ndim else 0.0)
    save_file(model.state_dict(), str(path / "open_clip_model.safetensors"))
    return path


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with random weights of every scorer in its authors' format: HPS_v2_compressed.pt, PickScore_v1/, ..."""
    path = tmp_path_factory.mktemp("published")
    official.register(path)
    official.save_hps(path / "HPS_v2_compressed.pt")
    official.save_pickscore(path / "PickScore_v1")
    torch.save(official.head_layers(16, seed=9), path / "sac+logos+ava1-l14-linearMSE.pth")
    draw = torch.Generator().manual_seed(10)
    torch.save(
        {"weight": torch.randn(1, 16, generator=draw), "bias": torch.tensor([5.0])}, path / "sa_0_4_vit_l_14_linear.pth"
    )
    official.save_imagereward(path / "ImageReward")
    official.save_vlm(path / "vlm")
    return path


@pytest.fixture(scope="session")
def images() -> list[Image.Image]:
    """Five images of different sizes and shapes."""
    rng = np.random.default_rng(0)
    sizes = [(24, 24), (40, 30), (17, 64), (24, 25), (100, 90)]
    return [Image.fromarray(rng.integers(0, 255, (h, w, 3), dtype=np.uint8)) for w, h in sizes]
