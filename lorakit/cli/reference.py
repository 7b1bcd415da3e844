"""The generated reference: recipe keys, file keys, exit codes, environment variables and JSON answers.

`lorakit recipe reference` prints it, and a test keeps examples/reference.md equal to it.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from lorakit.config.validation_errors import find_section

ENVIRONMENT = {
    "LORAKIT_CACHE": "folder of the caches (latents, text embeddings, converted base models); may be deleted",
    "LORAKIT_CAPTION_API_KEY": "key of the caption server (`--api-key-env` names another variable)",
    "LORAKIT_VQA_API_KEY": "key of the server that answers VQAScore's questions",
    "LORAKIT_WATCHDOG_SECONDS": "seconds without progress after which the stacks are written; 0 disables it",
    "LORAKIT_QUIET": "set by `--quiet`: no progress",
    "HF_HOME, HF_TOKEN, HF_HUB_OFFLINE": "the hub's own variables",
    "NO_COLOR": "errors without color",
}
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


def reference_page() -> str:
    """Return the reference as Markdown."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    from lorakit.config.recipe import Recipe
    from lorakit.data.prompts import Prompt

    yield "# Reference"
    yield ""
    yield "Generated by `lorakit recipe reference --out examples/reference.md`; a test keeps it current."
    yield from _section("Recipe", "YAML or `key=value` on the command line. Required keys have no default.")
    yield from _table(("key", "values", "default", "meaning"), _recipe_rows(Recipe))
    yield from _manifest()
    yield from _section("Prompt files", _paragraph(Prompt))
    yield from _table(("key", "values", "default"), _prompt_rows())
    yield "The content of a file decides its form, whatever its name. The keys have other names too."
    yield ""
    yield from _table(("form", "usual extensions"), _form_rows())
    yield from _table(("key", "other names"), _name_rows())
    yield from _run_files()
    yield from _section("Exit codes", "")
    yield from _table(("code", "meaning"), _exit_codes())
    yield from _section("Environment variables", "")
    yield from _table(("variable", "meaning"), ((f"`{key}`", text) for key, text in ENVIRONMENT.items()))
    yield from _section("JSON answers", "What the commands print with `--json`.")
    for command, keys in JSON_ANSWERS.items():
        yield f"**{command}**"
        yield ""
        yield from _table(("key", "meaning"), _key_rows(keys))


def _section(title: str, text: str) -> Iterator[str]:
    yield ""
    yield f"## {title}"
    yield ""
    if text:
        yield text
        yield ""


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    heads = list(heads)
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
    yield ""


def _key_rows(keys: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for key, text in keys.items():
        yield (key if key.startswith("(") else f"`{key}`"), text


def _recipe_rows(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Yield a row for each key of a section and of the sections within it."""
    for name, field in section.model_fields.items():
        key = prefix + (field.alias or name)
        below = find_section(field.annotation)
        child = below.model if below else None
        default = "" if field.is_required() else f"`{_value(field.get_default(call_default_factory=True))}`"
        if child is not None:
            default = "(section)" if isinstance(field.get_default(), BaseModel) else default
        text = " ".join((field.description or (child.__doc__ if child else "") or "").split())
        yield f"`{key}`", _type(field.annotation), default, text
        if child is not None:
            yield from _recipe_rows(child, f"{key}.{below.index if below else ''}")


def _value(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(list(value) if isinstance(value, tuple) else value).replace("'", "")


def _type(annotation: Any) -> str:
    """Describe a type in the words of YAML: integer, number, text, true/false, list of ..., or the values."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is typing.Annotated:
        return _type(arguments[0])
    if origin is typing.Literal:
        return ", ".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type(part) for part in arguments))
    if origin in (list, tuple, dict):
        parts = [_type(part) for part in arguments if part is not Ellipsis]
        kind = {list: "list of", tuple: "list of", dict: "mapping of"}[origin]
        return f"{kind} {', '.join(dict.fromkeys(parts))}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    names = {
        int: "integer",
        float: "number",
        str: "text",
        bool: "true/false",
        Path: "path",
        type(None): "null",
    }
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _manifest() -> Iterator[str]:
    from lorakit import manifest

    yield from _section("manifest.jsonl", "One image per line. " + _paragraph(manifest.Record))
    yield from _table(("key", "values", "default"), _dataclass_rows(manifest.Record))
    for title, kind in (
        ("`captions`", manifest.Caption),
        ("`conditioning_images`", manifest.ConditioningImage),
        ("`video`", manifest.VideoInfo),
    ):
        yield f"{title}: {_paragraph(kind)}"
        yield ""
        yield from _table(("key", "values", "default"), _dataclass_rows(kind))


def _dataclass_rows(kind: type) -> Iterator[tuple[str, str, str]]:
    hints = typing.get_type_hints(kind)
    for field in fields(kind):
        default = "" if field.default is MISSING else f"`{_value(field.default)}`"
        yield f"`{field.name}`", _type(hints[field.name]), default


def _prompt_rows() -> Iterator[tuple[str, str, str]]:
    from lorakit.data.prompt_files.keys import PROMPT_KEYS
    from lorakit.data.prompt_files.values import DEFAULT_SEEDS
    from lorakit.data.prompts import DEFAULT_KIND

    values = {
        "seeds": ("list of integer, or one", f"`{list(DEFAULT_SEEDS)}`"),
        "width": ("pixels, rounded to what the base model generates", "of the command or recipe"),
        "height": ("pixels", "of the command or recipe"),
        "aspect_ratio": ("text such as `3:2`, with the area of the command or recipe", ""),
        "num_inference_steps": ("integer", "of the command or recipe"),
        "guidance_scale": ("number", "of the command or recipe"),
        "image": ("path or list of path", ""),
        "mask": ("path", ""),
        "kind": ("text", f"`{DEFAULT_KIND}`"),
        "questions": ("list of text, or of object with `question` and `answer` (yes, no)", ""),
        "id": ("text", "the number of the line"),
        "score_text": ("text", "`prompt`, with the class noun instead of the trigger"),
    }
    for key in PROMPT_KEYS:
        yield (f"`{key}`", *values.get(key, ("text", "")))


def _form_rows() -> Iterator[tuple[str, str]]:
    from lorakit.data.prompt_files.forms import FORMS, LINES

    for form in (*FORMS, LINES):
        yield form.title, ", ".join(f"`{suffix}`" for suffix in form.suffixes if suffix)


def _name_rows() -> Iterator[tuple[str, str]]:
    """Yield the keys of prompts with their names in other tools, and as options behind a prompt."""
    from lorakit.data.prompt_files.keys import OPTION_NAME, OWN_NAME, PROMPT_KEYS, PROMPT_NAMES

    for key in (*PROMPT_KEYS, "size"):
        names = [name for name, own in OWN_NAME.items() if own == key and name != key]
        names += [name for name in PROMPT_NAMES[1:] if key == "prompt"]
        names += [f"--{name}" for name, own in OPTION_NAME.items() if own == key and name not in OWN_NAME]
        if names:
            yield f"`{key}`", ", ".join(f"`{name}`" for name in names)


def _run_files() -> Iterator[str]:
    from lorakit.training import run_records

    yield from _section("Files of a run", "")
    for title, keys in (
        ("run.json", run_records.RUN_KEYS),
        ("heartbeat.json", run_records.HEARTBEAT_KEYS),
        ("metrics.jsonl", run_records.METRICS_KEYS),
        ("tracker.json, one of `runs`", run_records.TRACKER_KEYS),
        ("state.json of a checkpoint", run_records.STATE_KEYS),
    ):
        yield f"**{title}**"
        yield ""
        yield from _table(("key", "meaning"), _key_rows(keys))


def _exit_codes() -> Iterator[tuple[str, str]]:
    from lorakit.core import errors

    yield "0", "done"
    yield "1", "unexpected error"
    kinds = (
        errors.ConfigError,
        errors.DataError,
        errors.MemoryLimitError,
        errors.DiskError,
        errors.NumericError,
    )
    for kind in kinds:
        yield str(kind.exit_code), _paragraph(kind).rstrip(".")
    yield (
        f"{errors.EXIT_INTERRUPTED}, {errors.EXIT_TERMINATED}",
        "interrupted by a signal; the same command resumes",
    )
    yield "128 + N", "a process was ended by signal N, such as 137: killed; the same command resumes"


def _paragraph(kind: type) -> str:
    """Return the docstring of a class in one line, without code references to Python."""
    return re.sub(r"\s+", " ", (kind.__doc__ or "").strip())
