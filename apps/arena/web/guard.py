"""What every answer carries and no request gets past: security headers, a cap on bodies, no uploads or fetches by Gradio."""

from __future__ import annotations

import json
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline'",  # Gradio starts by inline scripts
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}
CLOSED = ("/gradio_api/upload", "/gradio_api/proxy=", "/proxy=", "/upload", "/gradio_api/file=http", "/file=http")
"""Roads by which Gradio would take files, or fetch addresses that a user names. The arena uses none of them."""
BODY = 256 * 1024
"""Bytes of a request, uploads of pictures apart."""
UPLOAD = "/api/upload"


class Guard:
    """ASGI middleware around the whole server, the page included."""

    def __init__(self, app: ASGIApp, upload_bytes: int) -> None:
        self.app, self.upload_bytes = app, upload_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path: str = scope["path"]

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message["headers"]}
                extra = dict(HEADERS) if path.startswith("/media/") else {**HEADERS, "cache-control": "no-store"}
                for name, value in extra.items():
                    if name.encode() not in present:
                        message["headers"] = [*message["headers"], (name.encode(), value.encode())]
            await send(message)

        if path.startswith(CLOSED):
            await _answer(guarded, 404, {"error": "missing", "message": "There is nothing here."})
            return
        most = self.upload_bytes if path == UPLOAD else BODY
        too_large = {"error": "large", "message": f"A request has at most {most:,} bytes."}
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > most:
            await _answer(guarded, 413, too_large)
            return
        taken, began = 0, False

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > most:
                raise _TooLarge
            return message

        async def noted(message: Message) -> None:
            nonlocal began
            began = True
            await guarded(message)

        try:
            await self.app(scope, counted, noted)
        except _TooLarge:
            if not began:
                await _answer(guarded, 413, too_large)


class _TooLarge(Exception):
    """More came than was declared."""


async def _answer(send: Send, status: int, body: dict[str, Any]) -> None:
    content = json.dumps(body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
