"""What performance.md promises, measured as ratios within one run: `python -m tests.benchmarks`."""
