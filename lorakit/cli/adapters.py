"""`lorakit inspect|check|convert|combine|resize|extract|merge`: the arguments, and what each prints.

Registering loads nothing heavy; each command imports what it needs when it runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from lorakit.adapters.formats import ExportedFile, LoadedAdapter

    Handler = Callable[[argparse.Namespace], int]
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

EXIT_DATA = 3
CONSUMERS = ("comfyui", "a1111", "diffusers")


def register_adapter_commands(commands: Subparsers) -> None:
    """Add the commands to the program's own."""
    look = _add_command(
        commands, "inspect", _inspect, "what an adapter file is, and what would load it", "dog.safetensors"
    )
    look.add_argument("file", help="an adapter file, a run's folder or peft's folder")
    test = _add_command(commands, "check", _check, "whether a program loads a file as it is; exit code 3 if not",
                "dog.safetensors --for comfyui")  # fmt: skip
    test.add_argument("file")
    test.add_argument("--for", dest="consumer", required=True, choices=CONSUMERS)
    turn = _add_command(
        commands,
        "convert",
        _convert,
        "write a file in another layout",
        "dog.safetensors --to kohya dog-k.safetensors",
    )
    turn.add_argument("file")
    turn.add_argument("out", help="the .safetensors file to write")
    turn.add_argument("--to", dest="layout", required=True, choices=["diffusers", "kohya", "native"])
    turn.add_argument("--base", help="the base's folder; DoRA and OFT need it")
    _add_combine_and_resize(commands)
    _add_extract_and_merge(commands)


def _add_combine_and_resize(commands: Subparsers) -> None:
    mix = _add_command(
        commands,
        "combine",
        _combine,
        "several adapters as one",
        "a.safetensors:0.7 b.safetensors:0.5 --out ab.safetensors",
    )
    mix.add_argument("files", nargs="+", metavar="FILE[:STRENGTH]")
    mix.add_argument("--out", required=True)
    mix.add_argument("--method", default="concatenate", choices=["concatenate", "svd", "ties", "dare"],
                     help="concatenate is exact, and its rank is the sum of the ranks")  # fmt: skip
    mix.add_argument("--rank", type=int, help="largest rank of the result (default: the largest given)")
    mix.add_argument(
        "--density", type=float, default=0.5, help="share of each difference that ties and dare keep"
    )
    mix.add_argument("--base", help="the base's folder; DoRA and OFT need it")
    less = _add_command(
        commands,
        "resize",
        _resize,
        "a lower rank, by SVD",
        "dog.safetensors --rank 8 --out dog-8.safetensors",
    )
    less.add_argument("file")
    _add_rank_options(less)
    less.add_argument("--base", help="the base's folder; DoRA and OFT need it")


def _add_extract_and_merge(commands: Subparsers) -> None:
    took = _add_command(commands, "extract", _extract, "the difference of a fine-tuned model from its base, as LoRA",
                "BASE TUNED --rank 32 --out style.safetensors")  # fmt: skip
    took.add_argument("base", help="the base's folder")
    took.add_argument("tuned", help="the fine-tuned model's folder")
    took.add_argument(
        "--targets", help="regular expression for the modules to look at (default: all matrices)"
    )
    _add_rank_options(took)
    into = _add_command(
        commands,
        "merge",
        _merge,
        "write adapters into a copy of a base",
        "BASE dog.safetensors:0.8 --out dog-model",
    )
    into.add_argument("base", help="the base's folder; it is only read")
    into.add_argument("files", nargs="+", metavar="FILE[:STRENGTH]")
    into.add_argument("--out", required=True, help="new folder")


def _add_command(
    commands: Subparsers, name: str, handler: Handler, text: str, example: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=text, description=text, epilog=f"example: lorakit {name} {example}"
    )
    parser.add_argument("--json", action="store_true", help="answer as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--family", help="the model's family, where the file does not say")
    parser.set_defaults(handler=handler)
    return parser


def _add_rank_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rank", type=int, help="largest rank")
    parser.add_argument("--energy", type=float, help="share of the squared norm to keep, such as 0.95")
    parser.add_argument("--out", required=True)


def _print_json_or_text(arguments: argparse.Namespace, value: Any, text: str) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False) if arguments.json else text)


def _adapter_path(given: str) -> Path:
    """A run's or peft's folder, or the file itself, which must be there."""
    from lorakit import adapters

    path = Path(given)
    return path if (path / "adapter_model.safetensors").is_file() else adapters.resolve_adapter_file(path)


def _parse_strength(given: str) -> tuple[Path, float]:
    """FILE or FILE:STRENGTH."""
    name, _, strength = given.rpartition(":")
    try:
        return (_adapter_path(name), float(strength)) if name else (_adapter_path(given), 1.0)
    except ValueError:
        return _adapter_path(given), 1.0


def _inspect(arguments: argparse.Namespace) -> int:
    from lorakit.adapters.formats.read import require_finite
    from lorakit.adapters.tools.inspect import inspect_adapter

    file = _adapter_path(arguments.file)
    found = inspect_adapter(file, arguments.family)
    lines = [f"{key}: {value}" for key, value in found.items() if not isinstance(value, dict)]
    for key, value in found.items():
        if isinstance(value, dict):
            lines += [f"{key}:", *(f"    {name}: {entry}" for name, entry in value.items())]
    _print_json_or_text(arguments, found, "\n".join(lines))
    require_finite(found["unsound"], str(file))
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from lorakit.adapters.tools.inspect import check_consumer_loads

    fits, why = check_consumer_loads(_adapter_path(arguments.file), arguments.consumer, arguments.family)
    _print_json_or_text(arguments, {"loads": fits, "why": why}, f"{arguments.consumer}: {why}")
    return 0 if fits else EXIT_DATA


def _save(
    arguments: argparse.Namespace,
    source: LoadedAdapter,
    family: str,
    changes: dict[str, Any],
    layout: str = "diffusers",
) -> ExportedFile:
    """Write changes as one file, proven like an export; never over what was read or is not lorakit's."""
    from lorakit.adapters.formats import BaseWeights, verify
    from lorakit.core import output_paths
    from lorakit.core.errors import ConfigError

    out = Path(arguments.out)
    output_paths.check_output_path(out, "out")
    if out.suffix != ".safetensors":
        raise ConfigError("name a .safetensors file", where=f"out: {out}")
    verify.require_overwritable(out, *(Path(given) for given in getattr(arguments, "read", ())))
    base = getattr(arguments, "base", None)
    weights = BaseWeights(Path(base)) if base else None
    return verify.write_verified(
        source, family, verify.ExportPlan((), layout, "", changes), out, weights, None, False
    )


def _warn_about_embeddings(*sources: LoadedAdapter) -> None:
    """A word is no change of a weight: it is not in the file that was written."""
    for source in sources:
        if source.words:
            word = source.facts["embedding"]["token"]
            print(f"the new word {word} is not in it: `lorakit export` writes it", file=sys.stderr)


def _weights(arguments: argparse.Namespace) -> Any:
    from lorakit.adapters.formats import BaseWeights

    return BaseWeights(Path(arguments.base)) if arguments.base else None


def _convert(arguments: argparse.Namespace) -> int:
    from lorakit.adapters.formats import export, read_adapter_file

    file = _adapter_path(arguments.file)
    source, arguments.read = read_adapter_file(file, arguments.family), [file]
    family = export.require_family(source, str(file))
    changes = export.convert_deltas(source, family, arguments.layout, _weights(arguments))
    made = _save(arguments, source, family, changes, arguments.layout)
    row = {"path": str(made.path), "layout": made.layout, "keys": made.keys}
    row |= {"approximated": made.approximated, "approximation_error": made.approximation_error}
    note = (
        f", {made.approximated} modules approximated, off by up to {made.approximation_error:.2g}"
        if made.approximated
        else ""
    )
    _print_json_or_text(arguments, row, f"{made.path}  {made.layout}, {made.keys} keys{note}")
    _warn_about_embeddings(source)
    return 0


def _combine(arguments: argparse.Namespace) -> int:
    from lorakit.adapters.formats import export, read_adapter_file
    from lorakit.adapters.tools.combine import combine_adapters
    from lorakit.core.errors import ConfigError

    given = [_parse_strength(text) for text in arguments.files]
    arguments.read = [file for file, _ in given]
    adapters = [(read_adapter_file(file, arguments.family), strength) for file, strength in given]
    found = {
        export.require_family(adapter, str(file))
        for (adapter, _), (file, _) in zip(adapters, given, strict=True)
    }
    if len(found) > 1:
        raise ConfigError(f"the adapters belong to different families: {', '.join(sorted(found))}")
    changes = combine_adapters(adapters, arguments.method, rank=arguments.rank, density=arguments.density,
                      weights=_weights(arguments))  # fmt: skip
    source = type(adapters[0][0])(changes, "diffusers")
    arguments.base = None
    made = _save(arguments, source, found.pop(), changes)
    _print_json_or_text(
        arguments, {"path": str(made.path), "keys": made.keys}, f"{made.path}  {made.keys} keys"
    )
    _warn_about_embeddings(*(adapter for adapter, _ in adapters))
    return 0


def _resize(arguments: argparse.Namespace) -> int:
    from lorakit.adapters.formats import export, read_adapter_file
    from lorakit.adapters.tools.combine import resize_adapter

    file = _adapter_path(arguments.file)
    source, arguments.read = read_adapter_file(file, arguments.family), [file]
    family = export.require_family(source, str(file))
    changes, kept = resize_adapter(
        source.changes, rank=arguments.rank, energy=arguments.energy, weights=_weights(arguments)
    )
    arguments.base = None
    made = _save(arguments, type(source)(changes, "diffusers", source.facts), family, changes)
    _warn_about_embeddings(source)
    return _print_written(arguments, made, changes, kept)


def _extract(arguments: argparse.Namespace) -> int:
    from lorakit.adapters.formats import LoadedAdapter
    from lorakit.adapters.tools.extract import extract_adapter

    changes, kept, family = extract_adapter(Path(arguments.base), Path(arguments.tuned), rank=arguments.rank,
                                    energy=arguments.energy, targets=arguments.targets)  # fmt: skip
    arguments.base = None
    made = _save(arguments, LoadedAdapter(changes, "diffusers"), family, changes)
    return _print_written(arguments, made, changes, kept)


def _print_written(
    arguments: argparse.Namespace, made: ExportedFile, changes: dict[str, Any], kept: dict[str, float]
) -> int:
    ranks = [change.rank for change in changes.values()]
    least, worst = min((share, module) for module, share in kept.items())
    row = {
        "path": str(made.path),
        "modules": len(changes),
        "ranks": [min(ranks), max(ranks)],
        "least_energy": least,
    }
    text = f"{made.path}  {len(changes)} modules, ranks {min(ranks)} to {max(ranks)}"
    _print_json_or_text(arguments, row, f"{text}, energy kept at least {least:.4f} ({worst})")
    return 0


def _merge(arguments: argparse.Namespace) -> int:
    from lorakit.adapters.formats import read_adapter_file
    from lorakit.adapters.tools.merge import merge_into_base

    given = [_parse_strength(text) for text in arguments.files]
    adapters = [
        (read_adapter_file(file, arguments.family, word_alone=True), strength) for file, strength in given
    ]
    count = merge_into_base(Path(arguments.base), adapters, Path(arguments.out))
    words = [adapter.facts["embedding"]["token"] for adapter, _ in adapters if adapter.words]
    told = "".join(f", the word {word} added" for word in words)
    row = {"path": arguments.out, "weights": count, "words": words}
    _print_json_or_text(arguments, row, f"{arguments.out}  {count} weights changed{told}")
    return 0
