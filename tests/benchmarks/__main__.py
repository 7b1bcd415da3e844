"""Run the benchmarks and print a table; `--json` for machines. Rounds are interleaved, because machines are
noisy."""

from __future__ import annotations

import argparse
import json
import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from tests.benchmarks import buckets, data, preserve, step

OTHERS = ("buckets", "data", "files", "hostile", "preserve")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks")
    parser.add_argument("what", nargs="?", choices=[*OTHERS, "step"], default="step")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--files", type=int, nargs="+", default=[1000, 100_000], help="for `files`")
    given = parser.parse_args()
    if given.what == "data":
        pictures = data.pictures(given.rounds)
        print(json.dumps(pictures, indent=2) if given.json else data.report(pictures))
        return 0 if all(map(data.good, pictures)) else 1
    if given.what == "files":
        print(json.dumps(data.many(tuple(given.files)), indent=2))
        return 0
    if given.what == "hostile":
        found = data.thousand()
        print(json.dumps(found, indent=2))
        return 0 if found["exit"] == 0 and found["peak_mb"] < data.GOALS["hostile_mb"] else 1
    if given.what == "preserve":
        kept = preserve.measure()
        print(json.dumps(kept, indent=2) if given.json else preserve.report(kept))
        return 0 if kept["good"] else 1
    if given.what == "buckets":
        found = buckets.measure(4 * given.rounds)
        print(json.dumps(found, indent=2) if given.json else buckets.report(found))
        return 0 if buckets.good(found) else 1
    rows = [step.measure(base, rounds=given.rounds, steps=given.steps) for base in ("tiny-unet", "tiny-dit")]
    if given.json:
        print(json.dumps(rows, indent=2))
    else:
        for row in rows:
            print(
                f"{row['base']}: {row['lorakit_ms']} ms a step, bare floor {row['floor_ms']} ms, "
                f"ratio {row['ratio']} (goal {row['goal']}), same losses to {row['loss_difference']:.1e}"
            )
    return 0 if all(row["ratio"] <= row["goal"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
