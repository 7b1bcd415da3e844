"""The JSON files of a run's folder and their keys, stated once.

`run_folder`, `checkpoint`, `trainer` and `monitor` write them; a test holds the files of a run to these keys.
"""

from __future__ import annotations

from typing import Any

RUN_FILE, HEARTBEAT_FILE, METRICS_FILE, LOG_FILE = "run.json", "heartbeat.json", "metrics.jsonl", "log.txt"
RECIPE_FILE, ADAPTER_FILE, REPORT_FILE = "recipe.yaml", "adapter.safetensors", "report.html"
CHECKPOINTS_FOLDER, SAMPLES_FOLDER = "checkpoints", "samples"  # of folders step-00000250
TRACKER_FILE = "tracker.json"
UNREADABLE_METRICS_FILE = "metrics-unreadable.txt"  # lines of metrics.jsonl that were damaged

STATUSES = ("running", "interrupted", "failed", "done")
"""Values of `status` in run.json."""

PHASES = ("text", "latents", "conditioning", "masks", "train", "validation", "samples")
"""Values of `phase` in heartbeat.json."""

RUN_KEYS = {
    "settings": "recipe keys that decide the adapter's bytes, such as optimizer.lr, and their values",
    "inputs": "hashes of dataset, base, class_images, held_out, caption_sources (where they are weighted) and"
    " init_from, and num_processes",
    "versions": "versions of Python, lorakit and the packages that decide a run's numbers",
    "machine": "platform and processor",
    "status": "running, interrupted, failed or done",
    "num_images": "images of the dataset, held-out ones included",
    "concepts": "for each concept: folder, trigger, images, held_out, repeats, weight, captions,"
    " captions_with_trigger, samples_per_epoch, steps_per_epoch, caption_use (in words)",
    "held_out": "images of the validation loss: their number and fingerprint",
    "memory": "memory settings of the run, decided: device, settings, images_at_once (of a forward pass),"
    " predicted (peak_bytes, step_seconds; only where the planner had to choose)",
    "objective_check": "the sanity check before step 1: prediction_type, relative_errors, passed",
    "acceleration": "compiled blocks, CUDA graphs and kernels of the training: request, settings, reasons of"
    " what is off, and the measured seconds of a step",
    "step": "the last step, of a finished run",
    "checkpoint_step": "step of the newest saved checkpoint",
    "changes": "changes between sessions: step, differences, and the run_hash of the checkpoints before",
    "exported_for": "of a finished run: the programs that its adapter was exported for",
    "final_loss": "mean loss of the same images without the adapter (base) and with it (adapter), at the end",
    "error": "first line of the error, of a failed run",
}
"""run.json."""


def find_record_problem(record: Any) -> str | None:
    """Return why a value cannot be the content of run.json, or None."""
    if not isinstance(record, dict):
        return "it is not an object"
    for part in ("settings", "inputs", "versions"):
        if not isinstance(record.get(part), dict):
            return f"`{part}` is not an object"
    if record.get("status") not in STATUSES:
        return f"`status` must be one of {', '.join(STATUSES)}"
    settings, inputs = record["settings"], record["inputs"]
    counts = {key: settings.get(key) for key in ("train.steps", "train.batch_size", "train.accumulate")}
    counts |= {"num_processes": inputs.get("num_processes")}
    for key, value in counts.items():
        if type(value) is not int or value < 1:
            return f"`{key}` must be a positive number"
    for key, kind in (("changes", list), ("exported_for", list), ("checkpoint_step", int)):
        if key in record and not isinstance(record[key], kind):
            return f"`{key}` has the wrong type"
    if not all(isinstance(c, dict) and isinstance(c.get("run_hash"), str) for c in record.get("changes", [])):
        return "`changes` holds something that is not a change"
    return None


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
    "lr": "learning rate of the denoiser's adapter; of what else is trained if that is not",
    "lr_lora_b": "learning rate of the matrices B, with optimizer.loraplus_lr_ratio",
    "lr_text_encoder": "learning rate of the text encoders, if it differs from lr",
    "lr_text_encoder_lora_b": "learning rate of the matrices B of the text encoders",
    "lr_embedding": "learning rate of the new token's vectors, if it differs from lr",
    "loss_scale": "factor on the loss before the backward pass, with train.precision fp16",
    "step_seconds": "duration of the step",
    "validation_loss": "mean loss of the held-out images",
    "clip_t": "CLIP-T of samples of the subject",
    "clip_t_class": "CLIP-T of samples of the class",
    "clip_t_unrelated": "CLIP-T of samples of other things",
}
"""A row of metrics.jsonl; rows of validation and of samples hold the step and their own metrics only."""

TRACKER_KEYS = {
    "tracker": "name of the tracker",
    "project, entity, server": "where the run is sent; null or empty for the tracker's defaults",
    "id": "identity of the run there: a resumed run continues it",
    "url": "address or folder of the results",
    "settings_hash": "hash of the settings that were sent",
    "last_index": "number of the last row (wandb's own step)",
    "complete": "true if a finished run was sent to its end",
    "updated": "time of the last change, in seconds since 1970",
    "sent": "steps that were sent, by metric, as ranges [first, last]; `samples` are the images",
}
"""An entry of `runs` in tracker.json: one for each tracker and project that the run was sent to."""

STATE_KEYS = {
    "format_version": "version of the checkpoint's format",
    "step": "optimizer steps done",
    "run_hash": "hash of the run's settings and inputs, so that a checkpoint of another run is not used",
    "state": "skipped_steps (those with non-finite numbers), micro_batch_size (images per forward pass); with"
    " fp16 also loss_scale: value, good_steps",
}
"""state.json of a checkpoint."""
