"""The longer tier: `python -m tests.reliability [--kills 200] [--seed N]`.

Runs of a U-Net and of a DiT are killed at random moments, several times in a row, every other one from an
empty cache, with much sampling. It prints how many runs ended in the same bytes, and what they were at when
they died.
"""

from __future__ import annotations

import argparse
import collections
import random
import sys
import tempfile
import time
from pathlib import Path

import tests.conftest  # noqa: F401 - one thread, no network
from tests.reliability import kills, tiny_training

IN_A_ROW = (3, 8)  # kills of one run
SAMPLES = {"every": 5, "num_inference_steps": 8, "guidance_scale": 2.0}


def main() -> int:
    """Return 0 if every run ended in the same bytes."""
    parser = argparse.ArgumentParser(prog="python -m tests.reliability", description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="how many processes to kill (default 200)")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**6, help="of the moments")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    began = time.monotonic()
    done: list[kills.Chain] = []
    with tempfile.TemporaryDirectory(prefix="lorakit-reliability-") as scratch:
        for number, base in enumerate(tiny_training.BASES):
            done += _kill(
                Path(scratch) / base,
                base,
                arguments.kills // len(tiny_training.BASES),
                arguments.seed + number,
            )
    return _report(done, time.monotonic() - began)


def _kill(folder: Path, base: str, count: int, seed: int) -> list[kills.Chain]:
    draw = random.Random(seed)
    training = tiny_training.make(folder, base, monitored=True, samples=SAMPLES)
    seconds = kills.life(training)
    reference = training.finished()
    done: list[kills.Chain] = []
    while (left := count - sum(len(chain.moments) for chain in done)) > 0:
        row = min(left, draw.randint(*IN_A_ROW))
        done.append(kills.chain(training, reference, row, draw, seconds, cached=len(done) % 2 == 0))
        print(f"{base}: {len(done[-1].moments)} kills, {done[-1].problems or 'equal'}", flush=True)
    return done


def _report(done: list[kills.Chain], seconds: float) -> int:
    tried = sum(len(chain.moments) for chain in done)
    sound = [chain for chain in done if not chain.problems]
    survived = sum(len(chain.moments) for chain in sound)
    moments = collections.Counter(moment for chain in done for moment in chain.moments)
    print(f"killed while at: {', '.join(f'{name} {count}' for name, count in moments.most_common())}")
    print(f"survived / tried: {survived} / {tried} kills")
    print(f"runs with equal bytes: {len(sound)} of {len(done)}; {seconds:.0f} s")
    return 0 if len(sound) == len(done) else 1


if __name__ == "__main__":
    sys.exit(main())
