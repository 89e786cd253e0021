"""Battles and votes: who may, how often, which battle, what becomes of a vote."""
