"""Read mutated inputs of every format, and report tracebacks, hangs and too much memory.

`python -m tests.fuzz [--seed N] [--count 10000] [--kind recipe ...] [--keep FOLDER]`. An input is drawn from
its kind and seed, so a failure is repeated by `--kind KIND --seed SEED --count 1`. Exit code 1 if any failed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from lorakit.core.progress import Progress
from tests.fuzz.campaign import Campaign
from tests.fuzz.readers import KINDS


def main() -> int:
    """Run the inputs and print a summary."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="the first seed (default 0)")
    parser.add_argument("--count", type=int, default=10_000, help="number of inputs (default 10000)")
    parser.add_argument("--kind", action="append", choices=list(KINDS), help="only this format; repeatable")
    keep = Path(tempfile.gettempdir()) / "lorakit-fuzz"
    parser.add_argument("--keep", type=Path, default=keep, help=f"folder for failed inputs (default {keep})")
    arguments = parser.parse_args()
    started = time.monotonic()
    campaign = Campaign(arguments.kind or list(KINDS), arguments.keep)
    with campaign, Progress("inputs", arguments.count) as progress:
        for done in campaign.run(arguments.seed, arguments.count):
            progress.update(done, f"{len(campaign.failures)} failed")
    print(campaign.summary(time.monotonic() - started))
    return 1 if campaign.failures else 0


if __name__ == "__main__":
    sys.exit(main())
