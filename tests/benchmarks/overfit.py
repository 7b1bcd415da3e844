"""An adapter trained too long on few images, and whether the evaluation says so.

`python -m tests.benchmarks.overfit [--out DIR]`: the embedded DiT learns stripes from eight pictures, is
saved at ten checkpoints, and is evaluated on 24 prompts with and 24 without the concept, four seeds each.
Fidelity rises; the copy or drift alarm must fire at the end; and the pick must lie before that. About six
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

STEPS, EVERY, RATE, PICTURES = 1000, 100, 1e-3, 8


def measure(out: Path) -> dict[str, Any]:
    """Train, evaluate; returns the figures by step, and what was picked."""
    from lorakit.evaluation.alarms import diversity_ratio
    from lorakit.evaluation.evaluate_run import RunEvaluationOptions, evaluate_run
    from lorakit.evaluation.report.verdict import selection_headline, selection_remarks
    from lorakit.sampling.pipeline import SamplingOptions
    from tests.evaluation import embedded

    began = time.monotonic()
    prompts = embedded.prompt_file(out / "p.jsonl", embedded.prompts(24, 24, (0, 1, 2, 3)))
    run = out / "run"
    if not (run / "adapter.safetensors").exists():
        data = embedded.dataset(out / "data", PICTURES)
        embedded.train(out, data, steps=STEPS, save_every=EVERY, lr=RATE)
    result = evaluate_run(
        run,
        RunEvaluationOptions(
            prompts=prompts,
            options=SamplingOptions(steps=10, guidance=4.0, batch=24),
            title=f"The embedded DiT learns stripes from {PICTURES} pictures, for too long",
        ),
    )
    made, pick = result.evaluation, result.pick
    rows = []
    for standing in pick.standings if pick else []:
        arm = standing.arm
        drift = made.interval(arm, "drift", made.of_role("unrelated"))
        spread = diversity_ratio(made, arm, made.prompts)
        rows.append(
            {
                "step": arm.step,
                "fidelity": round(standing.fidelity.mean, 3) if standing.fidelity else None,
                "adherence": round(standing.adherence.mean, 3) if standing.adherence else None,
                "drift": round(drift.mean, 3) if drift else None,
                "diversity": round(spread.mean, 3) if spread else None,
                "alarms": [alarm.kind for alarm in standing.alarms],
            }
        )
    return {
        "steps": rows,
        "pick": pick.arm.step if pick and pick.arm else None,
        "verdict": selection_headline(made, pick)[0],
        "remarks": selection_remarks(made, pick),
        "report": str(result.report),
        "seconds": round(time.monotonic() - began),
    }


def good(found: dict[str, Any]) -> bool:
    """Fidelity rose, the end has a copy or drift alarm, and the pick lies before every such alarm's end."""
    first, last = found["steps"][0], found["steps"][-1]
    fired = bool({"copy", "rote", "drift"} & set(last["alarms"]))
    return (
        last["fidelity"] > first["fidelity"]
        and fired
        and found["pick"] is not None
        and found["pick"] < last["step"]
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.overfit")
    parser.add_argument("--out", help="keep the run and its report here")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(given.out or folder))
    print(json.dumps(found, indent=2, ensure_ascii=False))
    return 0 if good(found) else 1


if __name__ == "__main__":
    sys.exit(main())
