"""Two processes, of which one has images and the other none. Launched by test_scoring.py."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from tests.vlm.batches import mixed_items
from vlm.encoding import Encoder
from vlm.loading import load_model
from vlm.scoring import AnswerScores
from vlm.tuning import tune


def run(wrap: str) -> None:
    """Take two steps; a rank that waits for a collective of the other never comes back."""
    loaded = load_model(sys.argv[1])
    encoder = Encoder(loaded, max_length=400)
    items = mixed_items(encoder)
    tune(loaded, language="full", projector="full", tower="full")
    module: torch.nn.Module = AnswerScores(loaded).train()
    if wrap == "ddp":
        module = DistributedDataParallel(module)
    else:
        mesh = init_device_mesh("cpu", (2,))
        for part in [*loaded.model.model.vision_tower.encoder.layers, *loaded.model.model.language_model.layers]:
            fully_shard(part, mesh=mesh)
        fully_shard(module, mesh=mesh)
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=1e-3)
    for step in range(2):
        text_only = dist.get_rank() == step
        batch = encoder.collate(items[1:2] if text_only else items[:1])
        assert any(batch.images) is not text_only
        module(batch).policy.sum().backward()
        assert all(p.grad is not None for p in module.parameters() if p.requires_grad)
        optimizer.step()
        optimizer.zero_grad()
    print(f"finished {wrap}\n", end="", flush=True)


dist.init_process_group("gloo")
run("ddp")
run("fsdp2")
dist.barrier()
dist.destroy_process_group()
