"""The JSON files of a run's folder and their keys, stated once.

`run_folder`, `checkpoint`, `trainer` and `monitor` write them; a test holds the files of a run to these keys.
"""

from __future__ import annotations

RUN_FILE, HEARTBEAT_FILE, METRICS_FILE, LOG_FILE = "run.json", "heartbeat.json", "metrics.jsonl", "log.txt"
RECIPE_FILE, ADAPTER_FILE, REPORT_FILE = "recipe.yaml", "adapter.safetensors", "report.html"
CHECKPOINTS_FOLDER = "checkpoints"  # of folders step-00000250

STATUSES = ("running", "interrupted", "failed", "done")
"""Values of `status` in run.json."""

PHASES = ("text", "latents", "conditioning", "masks", "train", "validation", "samples")
"""Values of `phase` in heartbeat.json."""

RUN_KEYS = {
    "settings": "recipe keys that decide the adapter's bytes, such as optimizer.lr, and their values",
    "inputs": "hashes of dataset, base, class_images and init_from, and num_processes",
    "versions": "versions of Python, lorakit and the packages that decide a run's numbers",
    "machine": "platform and processor",
    "status": "running, interrupted, failed or done",
    "num_images": "images of the dataset, held-out ones included",
    "objective_check": "the sanity check before step 1: prediction_type, relative_errors, passed",
    "step": "the last step, of a finished run",
    "error": "first line of the error, of a failed run",
}
"""run.json."""

HEARTBEAT_KEYS = {
    "phase": "the work being done: text, latents, conditioning, masks, train, validation or samples",
    "step": "units of this phase that are done; optimizer steps in the phase train",
    "total_steps": "units of this phase",
    "seconds_left": "estimate for this phase",
    "pid": "process that writes the run",
}
"""heartbeat.json, written in every new phase and every few seconds."""

METRICS_KEYS = {
    "step": "optimizer steps done, counted from 1; 0 before the first",
    "loss": "mean training loss of the step; null if it is not finite",
    "grad_norm": "norm of the gradient before clipping; null if it is not finite",
    "lr": "learning rate",
    "step_seconds": "duration of the step",
    "validation_loss": "mean loss of the held-out images",
    "clip_t": "CLIP-T of samples of the subject",
    "clip_t_class": "CLIP-T of samples of the class",
    "clip_t_unrelated": "CLIP-T of samples of other things",
}
"""A row of metrics.jsonl; rows of validation and of samples hold the step and their own metrics only."""

STATE_KEYS = {
    "format_version": "version of the checkpoint's format",
    "step": "optimizer steps done",
    "state": "skipped_steps (those with non-finite numbers), micro_batch_size (images per forward pass)",
}
"""state.json of a checkpoint."""
