"""Mutated inputs of every format: `python -m tests.fuzz`."""
