"""Keys of the answers that commands print with `--json`."""

from __future__ import annotations

EXPORTED_FILE = {
    "path": "the written file",
    "consumers": "programs that load it",
    "layout": "diffusers, native, kohya or textual_inversion",
    "num_tensors": "number of tensors",
    "approximated_modules": "modules that became the nearest LoRA",
    "approximation_error": "largest relative error of these",
    "token_file": "file with the vectors of a new token beside it, or null",
}
COUNTS = {
    "folder": "the dataset",
    "images": "images found",
    "kept": "images used for training",
    "excluded": "number of excluded images by code",
    "captions": "number of captions by source",
    "buckets": "number of images by bucket (WIDTHxHEIGHT)",
    "masks": "images with a mask",
    "conditioning_images": "number by type (absent without any)",
    "captioner": "numbers of answers and tokens, failures by reason (absent without a model)",
    "findings": "number of findings by level",
    "warnings": "errors and warnings, with the rows of `data check`",
}
SELECTION = {
    "selected": "name of the variant, such as step-400@0.7; null if none",
    "step": "its training step",
    "strength": "its adapter strength",
    "reason": "reason in one sentence",
    "tied_with": "variants that cannot be distinguished from it",
    "few_prompts": "true below 24 prompts",
    "best": "name of the best variant by quality, whatever its alarms",
    "despite_alarms": "true if the selected variant has an alarm, because all have one",
    "still_rising": "true if quality still rises at the last checkpoint",
    "worsened": "scores that are worse at a better, later variant than the selected one",
    "family_level": "probability that the best variant is the selected one or in `tied_with`",
    "num_folds": "parts of the prompts for cross-fitted figures: each reports what the others select",
    "max_drift": "limit of the drift and its origin",
    "quality, fidelity, prompt_adherence": "intervals: mean, ci_low, ci_high, level, num_prompts, "
    "few_prompts, unknown_reason (then the numbers are null)",
    "variants": "the same figures of every variant, with the names of its alarms and warnings",
    "alarms": "alarms by variant",
    "preferred_by_people": "true if a blind vote prefers it to a variant that the scores cannot distinguish,"
    " false if the vote ended without a clear preference, null without such a vote",
    "votes": "as of `eval vote`; null without votes, and absent in the other commands",
}
VOTES = {
    "pairs": "for each two variants: `first` (with more votes) and `second`, counts of votes and prompts,"
    " `share` of the decided votes that are for the first (an interval), `preferred` (null without a clear"
    " preference) and `ended_after` (votes; null while the test is open), `level` and p-value `sign_test`",
    "num_votes, num_voters": "votes that count, and people",
    "num_repeats, num_consistent": "pairs shown again, and those with the same answer",
    "left_share": "share of the decided votes that are for the image on the left",
    "num_outdated": "votes on images that have changed since",
}
TRANSFER = {
    "path": "folder or file written",
    "num_images": "images",
    "num_resized": "images that were resized",
    "num_text_files": "caption and metadata files",
    "num_shards": "files of the format",
    "resize_errors": "images that could not be resized, with the reason",
    "num_masks": "number of masks",
    "num_conditioning_images": "number of sources and controls",
    "columns": "columns of a table by role: image, source, control, mask, captions, tags",
    "splits": "splits that were imported, each into a folder of its own",
    "left_out": "what was left out: `type` (file, column, row, ...), `reason` and `names`",
    "notes": "what another program does differently with the files",
}
JSON_ANSWERS: dict[str, dict[str, str]] = {
    "data prepare, scan, merge, caption, bucket, mask, control": COUNTS,
    "data check": {"counts": "as of `data prepare`", "findings": "rows: level, code, message, files, remedy"},
    "data unlink": {
        "folder": "the dataset",
        "done": "false if it was only a plan, without --yes",
        "controls, masks, captions": "number of entries of each named part",
        "files": "generated files that are deleted",
        "kept": "generated files that are kept, and the reason",
    },
    "data import, export": TRANSFER,
    "plan": {
        "base": "base model of the recipe",
        "device": "name, and usable_bytes, which a run may fill",
        "fits": "true if the settings fit",
        "memory": "the chosen settings, as in the recipe's section memory",
        "images_at_once": "images of a forward pass",
        "peak_bytes": "predicted peak by part, and total",
        "main_memory_bytes": "weights and activations that wait in main memory",
        "step_seconds": "total, computing, launching (kernels), transferring",
        "steps": "optimizer steps",
        "hours": "of the steps, without caching and samples",
        "cost": "hours times --price, or null",
        "cache_bytes": "latents and text embeddings on the disk",
        "buckets": "width, height and number of images of each",
        "reasons": "sentences on the choice",
        "alternatives": "other settings that fit: memory, images_at_once, peak_bytes, step_seconds, fits",
        "notes": "sentences on what was assumed",
    },
    "cache": {
        "images": "images of the run, or of the shard",
        "encoded": "those that were not in the cache",
        "cache": "folder of the cache",
    },
    "eval run, score, report": {
        "report": "report.html",
        "verdict": "one sentence",
        "notes": "further sentences",
        "selection": "as of `eval pick`; null if there is nothing to select",
        "next_commands": "the commands that export the selected checkpoint of a run, and sample with it",
    },
    "eval pick": SELECTION,
    "eval vote": VOTES,
    "eval compare": {
        "first, second": "names of the two variants",
        "differences": "interval of the paired difference by metric",
        "verdict": "one sentence",
    },
    "eval prompts": {"path": "the prompt file", "num_prompts": "number of prompts"},
    "sample": {"(list)": "the files written"},
    "export": {
        "(list)": "one entry per file, as of `convert`, and:",
        "step, reason": "the checkpoint of a run, and why it is used; null and empty for a file",
        "strength": "strength to use the file with, in its metadata",
        "strength_applied": "true if it was multiplied into the weights, which are then used at 1",
    },
    "publish": {
        "folder": "the written folder",
        "files": "its files; these are uploaded",
        "num_bytes": "their size",
        "is_evaluated": "false if the card says that there is no current evaluation",
        "upload": "null, or repository, url, commit (empty if nothing had changed), is_private, uploaded and"
        " removed (names of files)",
    },
    "convert": EXPORTED_FILE,
    "check": {"loads": "true or false", "reason": "one sentence"},
    "combine": {"path": "the written file", "num_tensors": "number of tensors"},
    "merge": {
        "path": "the new folder",
        "num_weights": "weights that changed",
        "tokens": "tokens added to the tokenizers",
    },
    "inspect": {
        "path": "the file",
        "families": "possible model families",
        "layout": "layout of the tensor names",
        "components": "number of modules by component",
        "types": "number of modules by method",
        "ranks": "number of modules by rank",
        "scales": "number of modules by scale",
        "num_parameters": "number of parameters",
        "modules": "number of modules by name",
        "norms": "norm of the delta weights by block",
        "finite": "false if it contains NaN or infinity",
        "nonfinite_tensors": "their names",
        "consumers": "yes, partly, after export, no or unknown by program",
        "metadata": "the header's metadata",
    },
    "inspect IMAGE": {
        "path": "the file",
        "format, width, height, sha256": "of the image file",
        "says_ai_generated": "true if it contains the IPTC's mark of AI-generated media",
        "record": "lorakit's record of its generation, or null",
        "texts": "texts of any program in the file, by name",
        "content_credentials": "null without a C2PA manifest; else state (trusted, valid, invalid or not"
        " checked), digital_source_type, generator, issuer, identity, problems",
    },
    "reproduce": {
        "original, reproduction": "the two adapter files",
        "identical": "true if they are equal byte for byte",
        "tensor_differences": "largest difference by tensor",
        "environment_differences": "software and machine that differ",
    },
    "families": {
        "(list)": "name, title, pipelines, objective, component, targets, rank16_parameters, license, tested"
    },
    "recipes": {"(object)": "first line of each recipe by file"},
    "doctor": {
        "python, platform, cores, memory_gib": "the machine",
        "packages, optional": "versions; null if missing",
        "devices": "device, name, platform, memory_gib, precisions of each",
        "failures, unused_gpu, unusable_driver": "what does not work, and why; null if it does",
        "training": "teraflops_per_second as measured (null with --quick); for each published model: fits,"
        " quantize, denoiser_gib, shortage, step_seconds, practical",
        "judges": "judges of an evaluation: name, measures, offline (works without network), remedy",
        "(more)": "embedded base models, cache folder and free space",
    },
}
