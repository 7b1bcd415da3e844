"""The command line. Imports no torch, and little else, until a command needs it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from lorakit import __version__
from lorakit.core.errors import LorakitError

if TYPE_CHECKING:
    from pathlib import Path

    from lorakit.config.recipe import Recipe

Handler = Callable[[argparse.Namespace], int]


def _print(value: Any, as_json: bool, text: str) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str) if as_json else text)


def _quickstart(arguments: argparse.Namespace) -> int:
    from lorakit.quickstart.quickstart import quickstart

    return quickstart(arguments.out, base=arguments.base, concept=arguments.concept, steps=arguments.steps)


def _train(arguments: argparse.Namespace) -> int:
    from lorakit.config import recipe

    made = recipe.load_recipe(arguments.recipe, arguments.overrides)
    return prepare_and_train(made, arguments.recipe, arguments.overrides, arguments.processes)


def prepare_and_train(made: Recipe, path: str, overrides: list[str], processes: int = 1) -> int:
    """Prepare a plain folder of images on the way, then train in processes of their own."""
    from lorakit import manifest
    from lorakit.core import launch
    from lorakit.models import base_model
    from lorakit.training.run_folder import RunFolder

    if made.slider:
        from lorakit.training import slider

        slider.generate_slider_images(made)
    RunFolder(made.out).check_places(made)
    base_model.resolve_base(made.base)
    for folder, trigger in ((made.dataset, made.trigger), (made.class_images, None)):
        if folder and folder.is_dir() and not (folder / manifest.MANIFEST_FILE).exists():
            from data_tools.prepare import PrepareOptions, prepare_dataset

            print(f"preparing {folder}")
            prepare_dataset(
                folder,
                PrepareOptions(
                    resolution=made.resolution,
                    batch=made.train.batch_size,
                    trigger=trigger,
                    class_noun=made.class_noun,
                    base=made.base,
                    clips=made.frames > 1,
                ),
            )
    return launch.run_launcher(launch.launch_command(path, overrides, processes=processes))


def _resume(arguments: argparse.Namespace) -> int:
    from lorakit.config import recipe
    from lorakit.training.run_folder import run_recipe_file

    file = run_recipe_file(arguments.run)
    overrides = [f"out={json.dumps(arguments.run)}"]
    return prepare_and_train(recipe.load_recipe(file, overrides), file, overrides, arguments.processes)


def _reproduce(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from lorakit.training import reproduce

    run = Path(arguments.run)
    out = Path(arguments.out) if arguments.out else run.with_name(f"{run.resolve().name}-again")
    file, overrides, processes = reproduce.prepare_reproduction(run, out, arguments.overrides)
    from lorakit.config import recipe

    code = prepare_and_train(recipe.load_recipe(file, overrides), file, overrides, processes)
    if code:
        return code
    found = reproduce.compare_runs(run, out)
    _print(found.to_json(), arguments.json, found.text())
    return 0 if found.equal else 1


def _sample(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from lorakit.cli.evaluate import parse_sampling_options
    from lorakit.sampling.pipeline import sample_to_folder

    given = arguments.adapter
    files = sample_to_folder(
        Path(arguments.out), arguments.base, given, Path(arguments.prompts), parse_sampling_options(arguments)
    )
    _print([str(f) for f in files], arguments.json, f"{len(files)} pictures in {arguments.out}")
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from lorakit import adapters
    from lorakit.adapters.formats import export_adapter

    file = adapters.resolve_adapter_file(arguments.source)
    out = Path(arguments.out) if arguments.out else file.parent / "exports"
    made = export_adapter(
        file,
        arguments.consumer,
        out,
        base=_resolve_export_base(arguments.source, arguments.base),
        family=arguments.family,
        rank=arguments.rank,
        private=arguments.private,
    )
    rows = [e.to_json() for e in made]
    _print(rows, arguments.json, "\n".join(e.text() for e in made))
    return 0


def _resolve_export_base(source: str, given: str | None) -> Path | None:
    """The base that was given, else the run's own where it is at hand: some kinds of adapters need it."""
    from pathlib import Path

    from lorakit.config import recipe
    from lorakit.models import base_model

    stored = Path(source) / "recipe.yaml"
    if given is None and stored.is_file():
        spec = recipe.load_recipe(stored).base
        given = spec if base_model.is_embedded(spec) or Path(spec).is_dir() else None
    if given is None:
        return None
    return base_model.resolve_base(given) if base_model.is_embedded(given) else Path(given)


def _families(arguments: argparse.Namespace) -> int:
    from lorakit.models import families

    rows = families.family_table()
    _print(rows, arguments.json, families.format_family_table(rows))
    return 0


def _recipes(arguments: argparse.Namespace) -> int:
    from lorakit.config import recipe

    found = sorted(recipe.builtin_recipes_folder().glob("*.yaml"))
    heads = {str(file): file.read_text(encoding="utf-8").splitlines()[0].lstrip("# ") for file in found}
    _print(heads, arguments.json, "\n".join(f"{file}\n    {head}" for file, head in heads.items()))
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from lorakit.cli import doctor

    found = doctor.inspect_environment()
    _print(found, arguments.json, doctor.format_report(found))
    return 1 if doctor.find_problems(found) else 0


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(prog="lorakit", description="Train LoRA adapters you can trust.")
    top.add_argument("--version", action="version", version=f"lorakit {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, handler: Handler, text: str, example: str, *, of: Any = commands) -> Any:
        made = of.add_parser(name, help=text, description=text, epilog=f"example: {example}")
        made.set_defaults(handler=handler)
        made.add_argument("--quiet", action="store_true", help="no progress")
        made.add_argument("--json", action="store_true", help="answer as JSON where there is an answer")
        return made

    _add_commands(add)
    from data_tools.cli import register_data_commands
    from lorakit.cli.adapters import register_adapter_commands
    from lorakit.cli.evaluate import register_evaluate_commands

    register_evaluate_commands(commands)
    register_data_commands(commands)

    register_adapter_commands(commands)
    return top


def _add_commands(add: Callable[..., Any]) -> None:
    quick = add(
        "quickstart", _quickstart, "the whole job on the embedded base, offline", "lorakit quickstart"
    )
    quick.add_argument("--out", default="quickstart", help="folder for the data, the run and the report")
    quick.add_argument("--base", default="tiny-dit", choices=["tiny-unet", "tiny-dit"])
    quick.add_argument(
        "--concept", default="striped", help="what the base has never seen: striped, neon, star, moon"
    )
    quick.add_argument("--steps", type=int, default=None, help="training steps")
    train = add(
        "train", _train, "train a recipe, or go on with it", "lorakit train recipes/sd15.yaml out=runs/a"
    )
    train.add_argument("recipe", help="YAML file")
    train.add_argument("overrides", nargs="*", metavar="key=value", help="for instance optimizer.lr=2e-4")
    train.add_argument("--processes", type=int, default=1, help="one for each GPU")
    resume = add("resume", _resume, "go on with a stopped run", "lorakit resume runs/dog")
    resume.add_argument("run")
    resume.add_argument("--processes", type=int, default=1)
    again = add(
        "reproduce",
        _reproduce,
        "train a finished run once more from what it stored, and compare the bytes",
        "lorakit reproduce runs/dog",
    )
    again.add_argument("run", help="a finished run's folder")
    again.add_argument("overrides", nargs="*", metavar="key=value", help="where data or base lie now")
    again.add_argument("--out", help="folder of the new run; default: RUN-again")
    sample = add(
        "sample",
        _sample,
        "pictures from prompts",
        "lorakit sample tiny-dit --adapter runs/a/adapter.safetensors:0.8 --prompts p.jsonl",
    )
    sample.add_argument("base", help="embedded name, diffusers folder or hub id")
    sample.add_argument("--adapter", help="FILE or FILE:STRENGTH")
    sample.add_argument("--prompts", required=True, help="JSONL, YAML, TSV or text")
    sample.add_argument("--out", default="samples")
    from lorakit.cli.evaluate import add_sampling_options

    add_sampling_options(sample)
    export = add(
        "export", _export, "write files that other tools load", "lorakit export runs/dog --for comfyui"
    )
    export.add_argument("source", help="a run's folder or an adapter file")
    export.add_argument(
        "--for", dest="consumer", default="all", choices=["comfyui", "a1111", "diffusers", "all"]
    )
    export.add_argument("--out", help="folder; default: exports beside the adapter")
    export.add_argument(
        "--base", metavar="DIR", help="the base's folder; DoRA for web interfaces and OFT need it"
    )
    export.add_argument("--family", help="the model's family, where the file does not say")
    export.add_argument(
        "--rank", type=int, help="largest rank where only a LoRA can be written (default 128)"
    )
    export.add_argument("--private", action="store_true", help="write the names of file and base into it")
    add("families", _families, "the model families and how each was tested", "lorakit families --json")
    add("recipes", _recipes, "the recipes that ship", "lorakit recipes")
    add("doctor", _doctor, "what is installed and what is missing", "lorakit doctor")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    given = build_parser().parse_args(arguments)
    from lorakit.core.launch import configure_process

    configure_process()
    if getattr(given, "quiet", False):
        os.environ["LORAKIT_QUIET"] = "1"
    try:
        return int(given.handler(given))
    except LorakitError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # `lorakit ... | head`: nobody reads on, which is no error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
