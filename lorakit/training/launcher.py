"""Start several training processes through torch's launcher.

`python -m lorakit.training.launcher N RECIPE ...` does what `accelerate launch --num_processes N` does, but
without its printed tracebacks: `lorakit train` prints one report of all processes. Signals are forwarded
once, and each process is given the time that its step and its checkpoint need.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

from lorakit.core import launch, platform, process_setup, supervision
from lorakit.core.errors import Interrupted
from lorakit.core.process_reports import Report

if TYPE_CHECKING:
    from torch.distributed.launcher.api import LaunchConfig


class _Workers:
    """The training processes below this launcher, and the signals that it forwards to them."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self.has_started = False

    def on_signal(self, number: int, _: FrameType | None) -> None:
        """Forward a signal; before the processes start, end this one."""
        self.received.append(number)
        if not self.has_started:
            stop = Interrupted("stopped before the first step of this session", signal_number=number)
            os._exit(supervision.report_end(stop))
        self.forward(number)

    def forward(self, number: int) -> None:
        """Send a signal to the processes."""
        import psutil

        platform.send_signal([process.pid for process in psutil.Process().children()], number)

    def on_parent_end(self) -> None:
        """Stop the processes when the command or the launcher above has ended; connected ones see it too."""
        if not self.has_started:
            os._exit(128 + signal.SIGTERM)
        if not supervision.is_connected():
            self.forward(signal.SIGTERM)


def main(arguments: Sequence[str]) -> int:
    """Run N training processes; return the exit code of the one that failed first."""
    num_processes, words = int(arguments[0]), list(arguments[1:])
    process_setup.configure_process()
    supervision.connect(keep_streams=True)
    workers = _Workers()
    for number in platform.STOP_SIGNALS:
        signal.signal(number, workers.on_signal)
    for number in platform.HANGUP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    supervision.watch_parent(workers.on_parent_end)
    logging.disable(logging.CRITICAL)
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    _configure_devices()
    config = _launch_config(num_processes)
    workers.has_started = True
    try:
        elastic_launch(config, sys.executable)("-m", "lorakit.training", *words)
    except ChildFailedError as error:
        return _report_failures(error.failures)
    return 0


def _configure_devices() -> None:
    """Set what accelerate's launcher sets: training on the CPU, and GPUs that cannot talk directly."""
    from lorakit.models.device import default_device

    if default_device().type == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
        return
    from accelerate.utils import check_cuda_p2p_ib_support

    if not check_cuda_p2p_ib_support():
        os.environ.setdefault("NCCL_P2P_DISABLE", "1")
        os.environ.setdefault("NCCL_IB_DISABLE", "1")


def _launch_config(num_processes: int) -> LaunchConfig:
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig

    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_processes,
        run_id=str(uuid.uuid4()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),  # no files in a folder for temporary files
        signals_to_handle="",  # torch's own handlers would kill a process 30 s after the signal
    )


def _report_failures(failures: Mapping[int, Any]) -> int:
    """Report the processes that were killed; return the exit code of the first failure."""
    ordered = sorted(failures.items(), key=lambda item: item[1].timestamp)
    for number, failure in ordered:
        if (how := platform.describe_crash(failure.exitcode)) is not None:
            crash = Report("crash", number, launch.exit_code(failure.exitcode), pid=failure.pid, text=how)
            supervision.report_crash(crash)
    codes = [launch.exit_code(failure.exitcode) for _, failure in ordered]
    return next((code for code in codes if code), 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
