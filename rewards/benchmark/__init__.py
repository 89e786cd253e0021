"""How well scorers predict what people prefer: named tie rules, intervals over prompts, ceilings and trivial baselines.

`palate bench-rewards` is the command; `rules` has the rules, `results` what is computed of scores.
"""
