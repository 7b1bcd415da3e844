"""Run `accelerate launch -m lorakit.training RECIPE [key=value ...]`."""

import os
import sys

from lorakit.core import deferred_imports, launch, process_setup, supervision
from lorakit.core.progress import QUIET_VARIABLE, print_line


def main() -> int:
    """Train in this process, or in all processes that a launcher was asked for; return the exit code."""
    process_setup.configure_process()
    deferred_imports.defer_imports()
    launch.start_missing_processes(sys.argv[1:])
    supervision.start()
    if not (supervision.is_connected() or supervision.rank() or os.environ.get(QUIET_VARIABLE)):
        print_line(launch.STARTING)
    from lorakit.training import train

    code = train.main()
    supervision.end_quietly()
    if code:  # nothing is left to clean up, and the end of the interpreter takes a second
        sys.stderr.flush()
        os._exit(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
