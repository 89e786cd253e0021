"""Battle packs: made from outputs on disk, read, imported; pictures as voters get them."""
