"""Benchmarks that compare lorakit with baselines within one run: `python -m tests.benchmarks`."""
