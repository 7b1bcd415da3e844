"""Run benchmarks by name, and write their results as a table, plots and JSON.

`python -m tests.benchmarks floor start --out FOLDER`; without names the quick ones run. The exit code is 1 if
a goal is missed. Rounds of the contestants are interleaved, because the speed of a machine varies.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from tests.benchmarks import buckets, data, prepare_again, preserve, results, votes

QUICK = ("floor", "start", "sampling")
TABLES = (*QUICK, "peers", "growth", "evaluation")
OTHERS = ("buckets", "data", "files", "again", "hostile", "preserve", "votes", "plan", "sweep")


def main() -> int:
    """Run what the command line names; return the exit code."""
    arguments = _parse()
    if arguments.gpu:
        return _run_gpu(arguments)
    names = arguments.names or list(QUICK)
    tables: dict[str, Sequence[dict[str, Any]]] = {}
    passed = []
    for name in names:
        if name in OTHERS:
            passed.append(_run_other(name, arguments))
            continue
        with tempfile.TemporaryDirectory() as folder:
            tables[name], is_passed = _measure(name, Path(folder), arguments)
        passed.append(is_passed)
        if arguments.out:
            results.write(arguments.out, tables)  # after each one: a later one may fail
    if tables:
        facts = results.machine()
        print(json.dumps({"machine": facts, "results": tables}, indent=2)
              if arguments.json else results.markdown(tables, facts))  # fmt: skip
    return 0 if all(passed) else 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(TABLES + OTHERS)}")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where table, plots and JSON are written")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="training steps of each round of `floor`")
    parser.add_argument("--bases", nargs="+", help="bases of `floor`; by default all")
    parser.add_argument("--diffusers", type=Path, metavar="SCRIPT", help="train_text_to_image_lora.py")
    parser.add_argument("--kohya", type=Path, metavar="SCRIPT", help="train_network.py of kohya's sd-scripts")
    parser.add_argument("--images", type=int, nargs="+", help="numbers of images for `growth`")
    parser.add_argument("--files", type=int, nargs="+", default=[1000, 100_000], help="for `files`, `again`")
    parser.add_argument("--gpu", action="store_true", help="published models at full size, on this GPU")
    parser.add_argument("--budget", type=float, default=540.0, help="seconds of --gpu")
    parser.add_argument("--models", nargs="+", help="models of --gpu")
    parser.add_argument("--miniature", action="store_true", help="tiny models in --gpu, on the CPU too")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.names if name not in TABLES + OTHERS]:
        parser.error(f"unknown: {', '.join(unknown)}; choose from {', '.join(TABLES + OTHERS)}")
    return arguments


def _measure(name: str, folder: Path, arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], bool]:
    """Return the rows of a benchmark, and if they meet their goals."""
    from tests.benchmarks import bases, growth, peers, sampling, start_up, step

    scripts = {"diffusers": arguments.diffusers, "kohya": arguments.kohya}
    if name == "floor":
        cases = step.all_cases(arguments.bases or bases.BASES)
        rows = []
        for case in cases:
            rows.append(step.measure(case, rounds=arguments.rounds, steps=arguments.steps, folder=folder))
            print(rows[-1]["name"], rows[-1]["ratio"], file=sys.stderr, flush=True)
        return rows, step.passes(rows)
    if name == "start":
        rows = start_up.measure(folder, scripts, rounds=arguments.rounds)
        return rows, start_up.passes(rows)
    measures: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "peers": lambda: peers.measure(folder, scripts, rounds=arguments.rounds),
        "growth": lambda: growth.measure(folder, arguments.images or growth.COUNTS),
        "sampling": lambda: sampling.measure(rounds=arguments.rounds),
        "evaluation": lambda: sampling.measure_evaluation(folder),
    }
    return measures[name](), True


def _run_gpu(arguments: argparse.Namespace) -> int:
    import torch

    from lorakit.models.device import default_device
    from tests.benchmarks import gpu

    device = default_device()
    if device.type != "cuda" and not arguments.miniature:
        print("this machine has no CUDA GPU: add --miniature for tiny models on the CPU", file=sys.stderr)
        return 2

    def write(rows: list[dict[str, Any]]) -> None:
        print(rows[-1], flush=True)
        if arguments.out:
            results.write(arguments.out, {"gpu": rows})

    with tempfile.TemporaryDirectory() as folder:
        rows = gpu.run(
            Path(folder),
            write,
            device=torch.device(device),
            budget=arguments.budget,
            miniature=arguments.miniature,
            keys=tuple(arguments.models or gpu.KEYS),
        )
    print(results.table(rows))
    return 1 if any("error" in row for row in rows) else 0


def _run_other(name: str, arguments: argparse.Namespace) -> bool:
    """Run a benchmark with a report of its own; return True if it meets its goal."""
    found: Any
    if name == "data":
        found, report = data.measure_images(arguments.rounds), data.format_report
        passed = all(map(data.passes, found))
    elif name == "files":
        found, report, passed = data.measure_small_files(tuple(arguments.files)), json.dumps, True
    elif name == "again":
        found, report = prepare_again.measure(max(arguments.files)), prepare_again.format_report
        passed = prepare_again.passes(found)
    elif name == "plan":
        from tests.benchmarks import plan

        found, report = plan.measure(arguments.rounds), plan.format_report
        passed = plan.passes(found)
    elif name == "hostile":
        found, report = data.measure_hostile_files(), json.dumps
        passed = found["exit"] == 0 and found["peak_mb"] < data.GOALS["hostile_mb"]
    elif name == "preserve":
        found, report = preserve.measure(), preserve.format_report
        passed = found["passes"]
    elif name == "sweep":
        from tests.benchmarks import sweep

        found, report = sweep.measure(rounds=arguments.rounds, steps=4), sweep.format_report
        passed = found["ratio"] <= found["goal"]
    elif name == "votes":
        found = [votes.measure(scenario, 200 * arguments.rounds) for scenario in votes.SCENARIOS]
        report, passed = votes.format_report, all(row.passes for row in found)
    else:
        found, report = buckets.measure(4 * arguments.rounds), buckets.format_report
        passed = buckets.passes(found)
    print(report(found) if name == "votes" or not arguments.json else json.dumps(found, indent=2))
    return bool(passed)


if __name__ == "__main__":
    sys.exit(main())
