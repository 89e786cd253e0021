"""What leaves the arena: the log, and training pairs."""
