"""Run a benchmark and print its results, as JSON with `--json`; the exit code is 1 if it misses its goal.

Rounds of the contestants are interleaved, because the speed of a machine varies.
"""

from __future__ import annotations

import argparse
import json
import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from tests.benchmarks import buckets, data, prepare_again, preserve, step, votes

NAMES = ("step", "buckets", "data", "files", "again", "hostile", "preserve", "votes")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks")
    parser.add_argument("name", nargs="?", choices=NAMES, default="step")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="training steps of each round of `step`")
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--files", type=int, nargs="+", default=[1000, 100_000], help="counts for `files`, `again`"
    )
    arguments = parser.parse_args()
    if arguments.name == "data":
        rows = data.measure_images(arguments.rounds)
        print(json.dumps(rows, indent=2) if arguments.json else data.format_report(rows))
        return 0 if all(map(data.passes, rows)) else 1
    if arguments.name == "files":
        print(json.dumps(data.measure_small_files(tuple(arguments.files)), indent=2))
        return 0
    if arguments.name == "again":
        results = prepare_again.measure(max(arguments.files))
        print(json.dumps(results, indent=2) if arguments.json else prepare_again.format_report(results))
        return 0 if prepare_again.passes(results) else 1
    if arguments.name == "hostile":
        results = data.measure_hostile_files()
        print(json.dumps(results, indent=2))
        return 0 if results["exit"] == 0 and results["peak_mb"] < data.GOALS["hostile_mb"] else 1
    if arguments.name == "preserve":
        results = preserve.measure()
        print(json.dumps(results, indent=2) if arguments.json else preserve.format_report(results))
        return 0 if results["passes"] else 1
    if arguments.name == "votes":
        outcomes = [votes.measure(scenario, 200 * arguments.rounds) for scenario in votes.SCENARIOS]
        print(votes.format_report(outcomes))
        return 0 if all(row.passes for row in outcomes) else 1
    if arguments.name == "buckets":
        rows = buckets.measure(4 * arguments.rounds)
        print(json.dumps(rows, indent=2) if arguments.json else buckets.format_report(rows))
        return 0 if buckets.passes(rows) else 1
    bases = ("tiny-unet", "tiny-dit")
    rows = [
        step.measure(base, optimizer, rounds=arguments.rounds, steps=arguments.steps)
        for base in bases
        for optimizer in step.OPTIMIZERS
    ]
    print(json.dumps(rows, indent=2) if arguments.json else step.format_report(rows))
    return 0 if all(row["ratio"] <= row["goal"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
