"""Training too long on few images, and the alarms and the selection of its evaluation.

`python -m tests.benchmarks.overfit [--out DIR]`: tiny-dit learns stripes from eight images, saves ten
checkpoints, and is evaluated on 24 prompts with and 24 without the concept, four seeds each. Fidelity rises;
the last checkpoint must have an alarm for copies or drift, and an earlier one must be selected. About six
minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

STEPS, SAVE_EVERY, LR, NUM_IMAGES = 1000, 100, 1e-3, 8
OVERFITTING_ALARMS = {"copied_images", "memorization", "drift"}


def measure(out: Path) -> dict[str, Any]:
    """Train and evaluate; return the scores of each checkpoint and the selected step."""
    from lorakit.evaluation.alarms import diversity_ratio
    from lorakit.evaluation.evaluate_run import evaluate_run
    from lorakit.evaluation.report.verdict import selection_headline, selection_notes
    from lorakit.sampling.pipeline import SamplingOptions
    from tests.evaluation import embedded

    started_at = time.monotonic()
    prompts = embedded.prompt_file(out / "p.jsonl", embedded.prompts(24, 24, (0, 1, 2, 3)))
    run = out / "run"
    if not (run / "adapter.safetensors").exists():
        data = embedded.dataset(out / "data", NUM_IMAGES)
        embedded.train(out, data, steps=STEPS, save_every=SAVE_EVERY, lr=LR)
    result = evaluate_run(
        run,
        prompts=prompts,
        sampling=SamplingOptions(num_inference_steps=10, guidance_scale=4.0, batch_size=24),
        title=f"tiny-dit learns stripes from {NUM_IMAGES} images, for too long",
    )
    evaluation, selection = result.evaluation, result.selection
    rows = []
    for candidate in selection.candidates if selection else []:
        variant = candidate.variant
        intervals = {
            "fidelity": candidate.fidelity,
            "prompt_adherence": candidate.prompt_adherence,
            "drift": evaluation.interval(variant, "drift", evaluation.prompts_of_role("unrelated")),
            "diversity": diversity_ratio(evaluation, variant, evaluation.prompts),
        }
        means = {name: round(interval.mean, 3) if interval else None for name, interval in intervals.items()}
        alarms = [alarm.name for alarm in candidate.alarms]
        rows.append({"step": variant.step, **means, "alarms": alarms})
    return {
        "steps": rows,
        "selected": selection.variant.step if selection and selection.variant else None,
        "verdict": selection_headline(evaluation, selection).text,
        "notes": selection_notes(evaluation, selection),
        "report": str(result.report),
        "seconds": round(time.monotonic() - started_at),
    }


def passes(results: dict[str, Any]) -> bool:
    """Return True if fidelity rises, the end has an alarm, and an earlier checkpoint is selected."""
    first, last = results["steps"][0], results["steps"][-1]
    return (
        last["fidelity"] > first["fidelity"]
        and bool(OVERFITTING_ALARMS & set(last["alarms"]))
        and results["selected"] is not None
        and results["selected"] < last["step"]
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.overfit")
    parser.add_argument("--out", help="folder for the run and its report (default: a temporary one)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = measure(Path(arguments.out or folder))
    print(json.dumps(results, indent=2, ensure_ascii=False))
    return 0 if passes(results) else 1


if __name__ == "__main__":
    sys.exit(main())
