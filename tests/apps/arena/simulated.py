"""Simulated votes for the tests of ratings: known strengths, voters with tastes of their own."""

from __future__ import annotations

import numpy as np

from apps.arena.ratings.davidson import moments
from apps.arena.ratings.table import BOTH_BAD, TIE, A, B, VoteTable

NOWHERE = np.empty((0, 0))


def votes_of(
    strengths: np.ndarray,
    voters: int,
    per_voter: int,
    rng: np.random.Generator,
    *,
    taste: float = 0.0,
    log_nu: float = -0.5,
    side: float = 0.0,
    both_bad: float = 0.0,
    measures: int = 0,
    beta: float = 0.0,
    categories: int = 1,
) -> VoteTable:
    """Return voters * per_voter votes on random pairs. taste: deviation of each voter's own strengths (log-odds).
    beta: log-odds per unit of each measure's difference, whose standard deviation is sqrt(2)."""
    m, n = len(strengths), voters * per_voter
    voter = np.repeat(np.arange(voters), per_voter)
    own = strengths + taste * rng.normal(size=(voters, m))
    a = rng.integers(0, m, n)
    b = (a + rng.integers(1, m, n)) % m
    left, right = rng.normal(size=(2, n, measures))
    delta = own[voter, a] - own[voter, b] + side + beta * (left - right).sum(1)
    now = moments(delta, log_nu, "davidson")
    draw = rng.random(n)
    outcome = np.where(draw < now.mean - now.tie / 2, A, np.where(draw < now.mean + now.tie / 2, TIE, B))
    outcome[rng.random(n) < both_bad] = BOTH_BAD
    return VoteTable(
        models=tuple(f"model {i:02}" for i in range(m)),
        voters=tuple(f"voter {i:05}" for i in range(voters)),
        prompts=("prompt",),
        categories=tuple(f"category {i}" for i in range(categories)),
        model_a=a.astype(np.int32),
        model_b=b.astype(np.int32),
        outcome=outcome.astype(np.int8),
        voter=voter.astype(np.int32),
        prompt=np.zeros(n, np.int32),
        category=rng.integers(0, categories, n).astype(np.int32),
        created=1.7e9 + 60.0 * rng.permutation(n),
        flags=np.zeros(n, np.uint8),
        covariates=tuple(f"measure {k}" for k in range(measures)),
        measures_a=left,
        measures_b=right,
    )


def table_of(*votes: tuple[str, str, str] | tuple[str, str, str, str], repeat: int = 1) -> VoteTable:
    """Return votes given as (model_a, model_b, outcome) or with a voter; without one, each vote has its own."""
    rows = [v if len(v) == 4 else (*v, f"voter {i:03}") for i, v in enumerate(votes * repeat)]
    a, b, outcome, voter = zip(*rows, strict=True)
    return VoteTable.of(a, b, outcome, voter, created=np.arange(len(rows), dtype=float).tolist())
