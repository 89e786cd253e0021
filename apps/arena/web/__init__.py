"""The arena over HTTP."""
