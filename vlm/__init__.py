"""Vision-language models: preference training against hallucination, builders of rejected answers, evaluation."""
