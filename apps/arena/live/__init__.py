"""Battles on prompts that voters type."""
