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

    from lorakit.adapters.formats import Adapter, Exported

    Handler = Callable[[argparse.Namespace], int]
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

EXIT_DATA = 3
CONSUMERS = ("comfyui", "a1111", "diffusers")


def register(commands: Subparsers) -> None:
    """Add the commands to the program's own."""
    look = _add(
        commands, "inspect", _inspect, "what an adapter file is, and what would load it", "dog.safetensors"
    )
    look.add_argument("file", help="an adapter file, a run's folder or peft's folder")
    test = _add(commands, "check", _check, "whether a program loads a file as it is; exit code 3 if not",
                "dog.safetensors --for comfyui")  # fmt: skip
    test.add_argument("file")
    test.add_argument("--for", dest="consumer", required=True, choices=CONSUMERS)
    turn = _add(
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
    _several(commands)
    _of_models(commands)


def _several(commands: Subparsers) -> None:
    mix = _add(
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
    less = _add(
        commands,
        "resize",
        _resize,
        "a lower rank, by SVD",
        "dog.safetensors --rank 8 --out dog-8.safetensors",
    )
    less.add_argument("file")
    _smaller(less)
    less.add_argument("--base", help="the base's folder; DoRA and OFT need it")


def _of_models(commands: Subparsers) -> None:
    took = _add(commands, "extract", _extract, "the difference of a fine-tuned model from its base, as LoRA",
                "BASE TUNED --rank 32 --out style.safetensors")  # fmt: skip
    took.add_argument("base", help="the base's folder")
    took.add_argument("tuned", help="the fine-tuned model's folder")
    took.add_argument(
        "--targets", help="regular expression for the modules to look at (default: all matrices)"
    )
    _smaller(took)
    into = _add(
        commands,
        "merge",
        _merge,
        "write adapters into a copy of a base",
        "BASE dog.safetensors:0.8 --out dog-model",
    )
    into.add_argument("base", help="the base's folder; it is only read")
    into.add_argument("files", nargs="+", metavar="FILE[:STRENGTH]")
    into.add_argument("--out", required=True, help="new folder")


def _add(
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


def _smaller(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rank", type=int, help="largest rank")
    parser.add_argument("--energy", type=float, help="share of the squared norm to keep, such as 0.95")
    parser.add_argument("--out", required=True)


def _answer(arguments: argparse.Namespace, value: Any, text: str) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False) if arguments.json else text)


def _file(given: str) -> Path:
    """A run's or peft's folder, or the file itself, which must be there."""
    from lorakit import adapters

    path = Path(given)
    return path if (path / "adapter_model.safetensors").is_file() else adapters.file_of(path)


def _strong(given: str) -> tuple[Path, float]:
    """FILE or FILE:STRENGTH."""
    name, _, strength = given.rpartition(":")
    try:
        return (_file(name), float(strength)) if name else (_file(given), 1.0)
    except ValueError:
        return _file(given), 1.0


def _inspect(arguments: argparse.Namespace) -> int:
    from lorakit.adapters.formats.read import refuse_unsound
    from lorakit.adapters.tools.inspect import describe

    file = _file(arguments.file)
    found = describe(file, arguments.family)
    lines = [f"{key}: {value}" for key, value in found.items() if not isinstance(value, dict)]
    for key, value in found.items():
        if isinstance(value, dict):
            lines += [f"{key}:", *(f"    {name}: {entry}" for name, entry in value.items())]
    _answer(arguments, found, "\n".join(lines))
    refuse_unsound(found["unsound"], str(file))
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from lorakit.adapters.tools.inspect import check

    fits, why = check(_file(arguments.file), arguments.consumer, arguments.family)
    _answer(arguments, {"loads": fits, "why": why}, f"{arguments.consumer}: {why}")
    return 0 if fits else EXIT_DATA


def _save(
    arguments: argparse.Namespace,
    source: Adapter,
    family: str,
    changes: dict[str, Any],
    layout: str = "diffusers",
) -> Exported:
    """Write changes as one file, proven like an export; never over what was read or is not lorakit's."""
    from lorakit.adapters.formats import Weights, verify
    from lorakit.core import output_paths
    from lorakit.core.errors import ConfigError

    out = Path(arguments.out)
    output_paths.check_new(out, "out")
    if out.suffix != ".safetensors":
        raise ConfigError("name a .safetensors file", where=f"out: {out}")
    verify.check_overwrite(out, *(Path(given) for given in getattr(arguments, "read", ())))
    base = getattr(arguments, "base", None)
    weights = Weights(Path(base)) if base else None
    return verify.write(source, family, verify.Plan((), layout, "", changes), out, weights, None, False)


def _tell_words(*sources: Adapter) -> None:
    """A word is no change of a weight: it is not in the file that was written."""
    for source in sources:
        if source.words:
            word = source.facts["embedding"]["token"]
            print(f"the new word {word} is not in it: `lorakit export` writes it", file=sys.stderr)


def _weights(arguments: argparse.Namespace) -> Any:
    from lorakit.adapters.formats import Weights

    return Weights(Path(arguments.base)) if arguments.base else None


def _convert(arguments: argparse.Namespace) -> int:
    from lorakit.adapters.formats import export, load

    file = _file(arguments.file)
    source, arguments.read = load(file, arguments.family), [file]
    family = export.known_family(source, str(file))
    changes = export.restated(source, family, arguments.layout, _weights(arguments))
    made = _save(arguments, source, family, changes, arguments.layout)
    row = {"path": str(made.path), "layout": made.layout, "keys": made.keys}
    row |= {"approximated": made.approximated, "approximation_error": made.approximation_error}
    note = (
        f", {made.approximated} modules approximated, off by up to {made.approximation_error:.2g}"
        if made.approximated
        else ""
    )
    _answer(arguments, row, f"{made.path}  {made.layout}, {made.keys} keys{note}")
    _tell_words(source)
    return 0


def _combine(arguments: argparse.Namespace) -> int:
    from lorakit.adapters.formats import export, load
    from lorakit.adapters.tools.combine import combine
    from lorakit.core.errors import ConfigError

    given = [_strong(text) for text in arguments.files]
    arguments.read = [file for file, _ in given]
    adapters = [(load(file, arguments.family), strength) for file, strength in given]
    found = {
        export.known_family(adapter, str(file))
        for (adapter, _), (file, _) in zip(adapters, given, strict=True)
    }
    if len(found) > 1:
        raise ConfigError(f"the adapters belong to different families: {', '.join(sorted(found))}")
    changes = combine(adapters, arguments.method, rank=arguments.rank, density=arguments.density,
                      weights=_weights(arguments))  # fmt: skip
    source = type(adapters[0][0])(changes, "diffusers")
    arguments.base = None
    made = _save(arguments, source, found.pop(), changes)
    _answer(arguments, {"path": str(made.path), "keys": made.keys}, f"{made.path}  {made.keys} keys")
    _tell_words(*(adapter for adapter, _ in adapters))
    return 0


def _resize(arguments: argparse.Namespace) -> int:
    from lorakit.adapters.formats import export, load
    from lorakit.adapters.tools.combine import resize

    file = _file(arguments.file)
    source, arguments.read = load(file, arguments.family), [file]
    family = export.known_family(source, str(file))
    changes, kept = resize(
        source.changes, rank=arguments.rank, energy=arguments.energy, weights=_weights(arguments)
    )
    arguments.base = None
    made = _save(arguments, type(source)(changes, "diffusers", source.facts), family, changes)
    _tell_words(source)
    return _told(arguments, made, changes, kept)


def _extract(arguments: argparse.Namespace) -> int:
    from lorakit.adapters.formats import Adapter
    from lorakit.adapters.tools.extract import extract

    changes, kept, family = extract(Path(arguments.base), Path(arguments.tuned), rank=arguments.rank,
                                    energy=arguments.energy, targets=arguments.targets)  # fmt: skip
    arguments.base = None
    made = _save(arguments, Adapter(changes, "diffusers"), family, changes)
    return _told(arguments, made, changes, kept)


def _told(
    arguments: argparse.Namespace, made: Exported, changes: dict[str, Any], kept: dict[str, float]
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
    _answer(arguments, row, f"{text}, energy kept at least {least:.4f} ({worst})")
    return 0


def _merge(arguments: argparse.Namespace) -> int:
    from lorakit.adapters.formats import load
    from lorakit.adapters.tools.merge import merge

    given = [_strong(text) for text in arguments.files]
    adapters = [(load(file, arguments.family, word_alone=True), strength) for file, strength in given]
    count = merge(Path(arguments.base), adapters, Path(arguments.out))
    words = [adapter.facts["embedding"]["token"] for adapter, _ in adapters if adapter.words]
    told = "".join(f", the word {word} added" for word in words)
    row = {"path": arguments.out, "weights": count, "words": words}
    _answer(arguments, row, f"{arguments.out}  {count} weights changed{told}")
    return 0
