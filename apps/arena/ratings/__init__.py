"""Ratings of the arena: votes in columns -> Bradley-Terry or Davidson, honest intervals, tests, a board."""
