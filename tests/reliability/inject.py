"""Faults in processes that a command starts: a `sitecustomize` module that Python imports in each of them.

The environment says what it does: `LORAKIT_TEST_FAULT` is a Python expression, evaluated when the module
`LORAKIT_TEST_AT` has been imported by a process with `LORAKIT_TEST_RANK`.
"""

from __future__ import annotations

import os
from pathlib import Path

HOOK = """
import importlib.abc, importlib.util, os, sys

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != os.environ["LORAKIT_TEST_AT"] or not self in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        plain = spec.loader.exec_module
        def exec_module(module):
            # compiled: Python ends by SIGINT when that passes through an exec of text
            exec(compile(os.environ["LORAKIT_TEST_BEFORE"], "before", "exec"), {"module": module})
            plain(module)
            exec(compile(os.environ["LORAKIT_TEST_FAULT"], "fault", "exec"), {"module": module})
        spec.loader.exec_module = exec_module
        return spec

if os.environ.get("LORAKIT_TEST_AT") and os.environ.get("RANK", "0") in os.environ["LORAKIT_TEST_RANK"]:
    sys.meta_path.insert(0, Finder())
"""

AT_STEP = """
plain = module.TrainingStep.run
def run(self):
    if self.state.step == 3:
        {statement}
    return plain(self)
module.TrainingStep.run = run
"""


def environment(folder: Path, at: str, fault: str, *, ranks: str = "0", before: str = "") -> dict[str, str]:
    """The variables that run `fault` in the processes `ranks` when they have imported a module."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(HOOK)
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        "PYTHONPATH": os.pathsep.join(paths),
        "LORAKIT_TEST_AT": at,
        "LORAKIT_TEST_FAULT": fault,
        "LORAKIT_TEST_BEFORE": before,
        "LORAKIT_TEST_RANK": ranks,
    }


def at_step_three(folder: Path, statement: str, *, ranks: str = "0") -> dict[str, str]:
    """The variables that execute a statement in the processes `ranks` before the fourth step."""
    return environment(folder, "lorakit.training.step", AT_STEP.format(statement=statement), ranks=ranks)
