"""Trackers (wandb, tensorboard and others) beside metrics.jsonl: best effort, in a process of their own.

The trainer imports no tracker's library and opens no socket. It only says, to a pipe that it never waits
for, up to which step the run's files are complete; the tracker's process reads the rest from the files. So a
tracker that fails, hangs or crashes cannot stop, change or slow a run, and one that was away receives the
whole history later. The only wait is at the end of a run, and it is bounded.
"""

from lorakit.training.trackers.process import TrackerProcess as TrackerProcess
from lorakit.training.trackers.process import send_rest as send_rest
