"""Who answers, as options of a command: a local vision-language model, or a chat endpoint."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palate.errors import UserError

if TYPE_CHECKING:
    from palate.endpoint import ChatClient
    from vlm.loading import Loaded


def add_answerer_options(parser: argparse.ArgumentParser, *, model: str) -> None:
    """Add what names a model or an endpoint, and how it is run. model: help of --model."""
    parser.add_argument("--model", help=model)
    parser.add_argument("--batch-size", type=int, default=8, help="prompts per forward of a local model (default: 8)")
    parser.add_argument("--device", help="cpu, cuda, ... (default: the best there is)")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), help="precision (default: bf16 on a GPU, else fp32)")
    remote = parser.add_argument_group("endpoint")
    remote.add_argument("--endpoint", metavar="URL", help="ask this OpenAI-compatible address, up to /v1, for --model")
    remote.add_argument("--key-env", metavar="NAME", help="environment variable that holds the endpoint's key")
    remote.add_argument("--reply-cache", type=Path, metavar="DIR", help="keep the endpoint's answers here, by content")
    remote.add_argument("--workers", type=int, default=8, help="requests at a time (default: 8)")
    remote.add_argument("--requests-per-minute", type=float, help="start at most so many requests a minute")
    remote.add_argument("--max-tokens-spent", type=int, help="stop asking once so many tokens were used")
    remote.add_argument(
        "--price", nargs=2, type=float, metavar=("IN", "OUT"), default=(0.0, 0.0), help="of a million tokens each way"
    )
    remote.add_argument("--max-cost", type=float, help="stop asking once the price of what was used reaches this")


def make_client(args: argparse.Namespace) -> ChatClient:
    """Return the client of the endpoint that the options name."""
    from palate.endpoint import ChatClient

    return ChatClient(
        args.endpoint,
        args.model or "",
        key_env=args.key_env,
        cache=args.reply_cache,
        workers=args.workers,
        requests_per_minute=args.requests_per_minute,
        max_tokens=args.max_tokens_spent,
        prices=tuple(args.price),
        max_cost=args.max_cost,
    )


def load_local(args: argparse.Namespace) -> Loaded:
    """Return the local model that the options name, on its device."""
    if not args.model:
        raise UserError("Name a model with --model: a transformers folder, a hub id, an adapter folder, or toy:vlm.")
    import torch
    import transformers

    from vlm.loading import load_model

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    loaded = load_model(args.model, dtype=args.dtype or ("fp32" if device == "cpu" else "bf16"))
    loaded.model.to(device)
    return loaded


def make_answerer(args: argparse.Namespace, *, max_new_tokens: int, **how: Any) -> Any:
    """Return the answerer that the options name. how: temperature and seed, and corruption where it is local."""
    if args.endpoint:
        from vlm.answering import EndpointAnswerer

        return EndpointAnswerer(make_client(args), max_tokens=max_new_tokens, **how)
    loaded = load_local(args)
    from vlm.generate import LocalAnswerer

    return LocalAnswerer(loaded, batch_size=args.batch_size, max_new_tokens=max_new_tokens, **how)
