"""The statistics of an evaluation against known truth: coverage of intervals, regret and bias of a selection.

`python -m tests.benchmarks.evaluation_statistics [--scale 1]` takes about three minutes on one core. The
generator (evaluation_population.py, simulated_evaluation.py) shares no assumption with the estimators: seeds
nested in prompts, heavy tails, checkpoints that differ by prompt, references from real features.

Goals: intervals of 95 % cover 92 to 98 %: means, differences, shares of 3 to 97 %, fidelity with 5 to 24
references. The selection loses at most .3 points of quality more than the largest measured quality does with
24 prompts x 4 seeds, .5 with 8 x 2, over seven shapes of training curves. Reported figures are unbiased
within .5 points. A race of ten checkpoints needs at most 65 % of the images and loses at most .3 points.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np

from tests.benchmarks.evaluation_population import (
    SHAPES,
    FloatArray,
    Population,
    shape_world_population,
    training_curve,
)

COVERAGE = (0.92, 0.98)
MAX_REGRET = {"24x4": 0.3, "8x2": 0.5}  # points above that of the largest measured quality
MAX_BIAS = 0.5
MAX_RACE_IMAGES, MAX_RACE_REGRET = 0.65, 0.3
DESIGNS = ((8, 4), (24, 4))
SHARES = (0.03, 0.1, 0.5, 0.9, 0.97)
REFERENCES = (5, 8, 12, 24)
MIXES = (0.3, 0.7, 1.0)
SEED_CORRELATION = 0.3  # of right answers to two seeds of one prompt


def measure(population: Population, scale: float = 1.0, shapes: Sequence[str] = SHAPES) -> dict[str, Any]:
    """Return all figures; `scale` multiplies the number of simulated evaluations."""
    started_at = time.monotonic()

    def count(number: int) -> int:
        return max(2, round(scale * number))

    return {
        "means": _means(count(1500)),
        "shares": _shares(count(1500)),
        "fidelity": _fidelity(population, count(250)),
        "regret": _regret(population, count(25), shapes),
        "bias": _bias(population, count(150), shapes),
        "race": _race(population, count(15), shapes),
        "seconds": round(time.monotonic() - started_at),
    }


def _covered(interval: Any, truth: float) -> bool:
    return bool(interval.ci_low <= truth <= interval.ci_high)


def _means(runs: int) -> dict[str, float]:
    """Coverage of means and paired differences of nested, heavy-tailed scores, and of skewed ones."""
    from lorakit.core.statistics import mean_interval

    rows: dict[str, float] = {}
    rng = np.random.default_rng(1)
    for prompts, seeds in DESIGNS:
        hits = {"mean": 0, "difference": 0, "skewed": 0}
        for _ in range(runs):
            ease = rng.standard_t(5, (prompts, 1))
            first = ease + 0.7 * rng.standard_t(4, (prompts, seeds))
            interaction = 0.4 * rng.standard_t(5, (prompts, 1))
            second = 0.3 + ease + interaction + 0.7 * rng.standard_t(4, (prompts, seeds))
            hits["mean"] += _covered(mean_interval(first.mean(1)), 0.0)
            hits["difference"] += _covered(mean_interval((second - first).mean(1)), 0.3)
            skewed = rng.lognormal(0, 0.8, (prompts, 1)) * rng.lognormal(0, 0.6, (prompts, seeds))
            hits["skewed"] += _covered(mean_interval(skewed.mean(1)), float(np.exp((0.64 + 0.36) / 2)))
        rows |= {f"{name} {prompts}x{seeds}": value / runs for name, value in hits.items()}
    return rows


def _shares(runs: int) -> dict[str, float]:
    """Coverage of shares and of differences of two shares, of seeds that resemble each other."""
    from lorakit.core.shares import share_difference, share_interval

    rng = np.random.default_rng(2)
    rows: dict[str, float] = {}
    for prompts, seeds in (*DESIGNS, (24, 1)):
        groups = np.repeat(np.arange(prompts), seeds).tolist()
        for share in SHARES:
            own = [_answers(rng, share, prompts, seeds) for _ in range(runs)]
            hits = sum(_covered(share_interval(answers, groups), share) for answers in own)
            rows[f"{share:.0%} {prompts}x{seeds}"] = hits / runs
        pairs = [[_answers(rng, share, prompts, seeds) for share in (0.3, 0.5)] for _ in range(runs)]
        hits = sum(_covered(share_difference(*pair, groups), 0.2) for pair in pairs)
        rows[f"30 to 50% {prompts}x{seeds}"] = hits / runs
    return rows


def _answers(rng: np.random.Generator, share: float, prompts: int, seeds: int) -> FloatArray:
    """Return right and wrong answers; each prompt has a chance of its own (beta distribution)."""
    size = 1 / SEED_CORRELATION - 1
    chance = rng.beta(share * size, (1 - share) * size, (prompts, 1))
    return (rng.random((prompts, seeds)) < chance).astype(float).ravel()


def _fidelity(population: Population, runs: int) -> dict[str, dict[str, float]]:
    """Coverage of fidelity and of its differences; the share of figures that cannot be determined."""
    from tests.benchmarks.simulated_evaluation import sample_scores

    rng = np.random.default_rng(3)
    rows = {}
    for prompts, seeds in DESIGNS:
        for references in REFERENCES:
            hits, known, unknown = np.zeros(2), np.zeros(2), 0
            for _ in range(runs):
                scores = sample_scores(
                    rng, population, MIXES, references=references, prompts=prompts, seeds=seeds
                )
                figures = [(0, scores.interval("fidelity", row), mix) for row, mix in enumerate(MIXES)]
                figures.append((1, scores.difference("fidelity", 2, 1), MIXES[2] - MIXES[1]))
                for kind, interval, truth in figures:
                    known[kind] += interval.is_known
                    unknown += kind == 0 and not interval.is_known
                    hits[kind] += interval.is_known and _covered(interval, truth)
            rows[f"{references} references {prompts}x{seeds}"] = {
                "fidelity": hits[0] / max(known[0], 1),
                "difference": hits[1] / max(known[1], 1),
                "undetermined": unknown / (len(MIXES) * runs),
            }
    return rows


def _true_quality(shape: str) -> FloatArray:
    from lorakit.evaluation.quality import harmonic_mean, saturate

    truths = training_curve(shape)
    parts = [np.array([truth.mix for truth in truths]), np.array([truth.adherence for truth in truths])]
    return harmonic_mean([saturate(part) for part in parts])[0]


def _regret(
    population: Population, runs: int, shapes: Sequence[str]
) -> dict[str, dict[str, dict[str, float]]]:
    """Points of quality below the best checkpoint without an alarm: of the selection, and of the one whose
    measured quality is the largest.
    """
    from lorakit.evaluation.select import select_checkpoint
    from tests.benchmarks.simulated_evaluation import simulate_evaluation

    result: dict[str, dict[str, dict[str, float]]] = {}
    for name, prompts, seeds in (("24x4", 24, 4), ("8x2", 8, 2)):
        for number, shape in enumerate(shapes):
            rng, truths, quality = np.random.default_rng(number), training_curve(shape), _true_quality(shape)
            rows = []
            for _ in range(runs):
                evaluation = simulate_evaluation(rng, population, truths, prompts=prompts, seeds=seeds)
                selection = select_checkpoint(evaluation)
                assert selection.variant is not None
                sound = [i for i, one in enumerate(selection.candidates) if not one.has_alarm]
                pool = sound or list(range(len(truths)))
                measured = [selection.candidates[i].quality.mean for i in pool]  # type: ignore[union-attr]
                selected = round((selection.variant.step or 0) / 100) - 1
                best, largest = quality[pool].max(), quality[pool[int(np.argmax(measured))]]
                rows.append([best - quality[selected], best - largest, selection.still_rising])
            regret, largest_regret, rising = np.mean(rows, axis=0)
            figures = {"selection": 100 * regret, "largest": 100 * largest_regret, "still_rising": rising}
            result.setdefault(name, {})[shape] = figures
    return result


def _bias(population: Population, runs: int, shapes: Sequence[str]) -> dict[str, dict[str, float]]:
    """Points by which the reported figures of the selected checkpoint exceed the truth, over all shapes."""
    from lorakit.evaluation.cross_fit import choose_variant, cross_fitted_weights
    from lorakit.evaluation.quality import NormalizedScores
    from tests.benchmarks.simulated_evaluation import sample_scores

    def no_worsening(earlier: int, later: int) -> list[str]:
        return []

    result = {}
    for name, prompts, seeds in (("24x4", 24, 4), ("8x2", 8, 2)):
        rows = []
        for number, shape in enumerate(shapes):
            rng, truths, quality = np.random.default_rng(number), training_curve(shape), _true_quality(shape)
            mixes, adherences = [t.mix for t in truths], [t.adherence for t in truths]
            for _ in range(runs):
                scores = sample_scores(
                    rng, population, mixes, adherences, references=12, prompts=prompts, seeds=seeds
                )
                pool = range(len(truths))
                selected = choose_variant(scores, pool, no_worsening)
                weights = cross_fitted_weights(scores, pool, no_worsening)
                assert weights is not None
                figures = NormalizedScores.from_scores(scores.scores.combine_variants(weights), 1)
                reported, own = figures.interval("quality", 0), scores.interval("quality", selected)
                fidelity = figures.interval("fidelity", 0)
                if reported is None or own is None or fidelity is None or not fidelity.is_known:
                    continue
                rows.append(
                    [
                        reported.mean - quality[selected],
                        figures.fidelity[0] - mixes[selected],
                        figures.prompt_adherence[0] - adherences[selected],
                        own.mean - quality[selected],
                        _covered(fidelity, mixes[selected]) / 100,  # not in points
                    ]
                )
        names = (
            "quality",
            "fidelity",
            "prompt_adherence",
            "quality without cross-fitting",
            "fidelity covered",
        )
        error = 100 * np.std(rows, axis=0)[0] / np.sqrt(len(rows))
        means = dict(zip(names, (100 * np.mean(rows, axis=0)).tolist(), strict=True))
        result[name] = means | {"standard error": float(error)}
    return result


def _race(population: Population, runs: int, shapes: Sequence[str]) -> dict[str, float]:
    """Part of the images that a race of ten checkpoints needs, and the points of quality that it loses."""
    from lorakit.evaluation import race
    from lorakit.evaluation.select import select_checkpoint
    from tests.benchmarks.simulated_evaluation import simulate_evaluation, without_prompts

    rows = []
    for number, shape in enumerate(shapes):
        rng, truths, quality = np.random.default_rng(number), training_curve(shape), _true_quality(shape)
        for _ in range(runs):
            evaluation = simulate_evaluation(rng, population, truths)
            num_prompts, selected = len(evaluation.prompts), select_checkpoint(evaluation).variant
            first = race.first_prompts(evaluation.prompts, evaluation.triggers)
            losers = set(race.find_losers(without_prompts(evaluation, first)))
            rest = (num_prompts - len(first)) * (1 - len(losers) / len(truths))
            for variant in evaluation.variants:
                variant.stopped_early = variant.name in losers
            after_race = select_checkpoint(evaluation).variant
            assert selected is not None
            assert after_race is not None
            before, after = (round((one.step or 0) / 100) - 1 for one in (selected, after_race))
            rows.append([(len(first) + rest) / num_prompts, quality[before] - quality[after]])
    images, loss = np.mean(rows, axis=0)
    return {"images": float(images), "loss": float(100 * loss)}


def passes(results: dict[str, Any]) -> bool:
    """Return True if every figure meets its goal."""
    return not missed_goals(results)


def missed_goals(results: dict[str, Any]) -> list[str]:
    """Return the figures that miss their goal."""
    low, high = COVERAGE
    cells = {k: v for k, v in results["means"].items() if not k.startswith("skewed")} | results["shares"]
    for name, row in results["fidelity"].items():
        cells |= {f"{name}: {kind}": row[kind] for kind in ("fidelity", "difference")}
    missed = [f"coverage of {name}: {value:.3f}" for name, value in cells.items() if not low <= value <= high]
    for name, shapes in results["regret"].items():
        excess = _mean(shapes, "selection") - _mean(shapes, "largest")
        if excess > MAX_REGRET[name]:
            missed.append(f"regret {name}: {excess:.2f} above that of the largest")
    for name, row in results["bias"].items():
        for kind in ("quality", "fidelity", "prompt_adherence"):
            if abs(row[kind]) > MAX_BIAS:
                missed.append(f"bias of {kind} {name}: {row[kind]:+.2f}")
    race = results["race"]
    if race["images"] > MAX_RACE_IMAGES or race["loss"] > MAX_RACE_REGRET:
        missed.append(f"race: {race}")
    return missed


def _mean(rows: dict[str, dict[str, float]], name: str) -> float:
    return float(np.mean([row[name] for row in rows.values()]))


def format_report(results: dict[str, Any]) -> str:
    """Return the figures as lines."""
    lines = ["coverage of 95 %:"]
    lines += [
        f"  {name}: {value:.3f}" for part in ("means", "shares") for name, value in results[part].items()
    ]
    for name, row in results["fidelity"].items():
        lines.append(
            f"  {name}: fidelity {row['fidelity']:.3f}, difference {row['difference']:.3f}, "
            f"undetermined {row['undetermined']:.0%}"
        )
    for name, shapes in results["regret"].items():
        lines.append(
            f"regret {name}: selection {_mean(shapes, 'selection'):.2f}, "
            f"largest measured quality {_mean(shapes, 'largest'):.2f} points"
        )
        lines += [
            f"  {shape}: {row['selection']:.2f}, {row['largest']:.2f}, rising in {row['still_rising']:.0%}"
            for shape, row in shapes.items()
        ]
    for name, row in results["bias"].items():
        lines.append(f"bias {name}: " + ", ".join(f"{kind} {value:+.2f}" for kind, value in row.items()))
    race = results["race"]
    lines.append(f"race: {race['images']:.0%} of the images, {race['loss']:.2f} points lost")
    lines += [f"missed: {goal}" for goal in missed_goals(results)]
    return "\n".join([*lines, f"{results['seconds']} s"])


def main(arguments: Sequence[str] | None = None, population: Callable[[], Population] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.evaluation_statistics")
    parser.add_argument("--scale", type=float, default=1.0, help="factor of the number of simulations")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    results = measure((population or shape_world_population)(), options.scale)
    print(json.dumps(results, indent=2) if options.json else format_report(results))
    return 0 if passes(results) else 1


if __name__ == "__main__":
    sys.exit(main())
