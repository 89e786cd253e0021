"""The arena's pages: the voter's on Gradio, the owner's beside it."""

from apps.arena.ui.page import mount

__all__ = ["mount"]
