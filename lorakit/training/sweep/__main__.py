"""The process of a sweep: `python -m lorakit.training.sweep RECIPE --out=DIR --grid=KEY=V,V`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from lorakit.core import launch, process_setup, supervision
from lorakit.core.errors import ConfigError, Interrupted, NumericError

OUT, GRID = "--out=", "--grid="


def main() -> int:
    """Train the members of a sweep in this process; return the exit code."""
    process_setup.configure_process()
    supervision.start()
    try:
        code = run(sys.argv[1:])
    except (Exception, Interrupted) as error:
        code = supervision.report_end(error)
    supervision.end_quietly()
    if code:
        sys.stderr.flush()
        os._exit(code)
    return code


def run(arguments: list[str]) -> int:
    """Train the members that the words of a command line name; 6 if one of them failed."""
    from lorakit.config.recipe import load_recipe
    from lorakit.training.sweep import grid
    from lorakit.training.sweep.run_sweep import run_sweep

    outs = [word.removeprefix(OUT) for word in arguments if word.startswith(OUT)]
    axes = grid.parse_axes([word.removeprefix(GRID) for word in arguments if word.startswith(GRID)])
    words = [w for w in arguments if not w.startswith((OUT, GRID, launch.ACCEPT_CHANGES))]
    if not words or not outs:
        raise ConfigError("usage: python -m lorakit.training.sweep RECIPE --out=DIR --grid=KEY=V,V")
    out = Path(outs[0])
    members = grid.build_members(load_recipe(words[0], words[1:]), axes, out)
    accept_changes = launch.ACCEPT_CHANGES in arguments
    result = run_sweep(members, out, handle_signals=True, accept_changes=accept_changes)
    return NumericError.exit_code if result.failed else 0


if __name__ == "__main__":
    sys.exit(main())
