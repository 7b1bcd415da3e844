"""`lorakit export`, `inspect`, `check`, `convert`, `combine`, `resize`, `extract` and `merge`.

Each parses its options, calls one function of `lorakit.adapters` and prints the result.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lorakit.core.command_line import FILE, FOLDER, POSITIVE, add_options, command, option, print_answer
from lorakit.core.errors import DataError
from lorakit.core.progress import print_line

if TYPE_CHECKING:
    from lorakit.adapters.formats import BaseWeights, LoadedAdapter
    from lorakit.adapters.sources import AdapterSource
    from lorakit.adapters.tools.combine import ReducedAdapter
    from lorakit.adapters.tools.weighted import WeightedAdapter

CONSUMERS = ["comfyui", "a1111", "diffusers"]
READERS = [*CONSUMERS, "forge", "kohya", "musubi"]
DTYPES = ["fp16", "bf16", "fp32"]

_file = click.argument("file", type=FILE, metavar="FILE", help="Adapter file, run, RUN@STEP or peft folder.")
_files = click.argument(
    "files",
    nargs=-1,
    required=True,
    metavar="FILE[:STRENGTH]...",
    help="Adapter files, runs, RUN@STEP or peft folders, each with an optional strength.",
)
_family = option("--family", metavar="NAME", help="Model family, if the file does not record it.")
_base = option(
    "--base", type=FOLDER, metavar="DIR", help="Base model folder; needed to convert DoRA and OFT."
)
_base_argument = click.argument(
    "base", type=FOLDER, metavar="BASE", help="Base model folder; it is only read."
)
_out = option("--out", required=True, type=FILE, metavar="FILE", help="The .safetensors file to write.")
_allow_loss = option("--allow-loss", is_flag=True,
                     help="Write also a nearest LoRA that loses over 10 % of a delta weight.")  # fmt: skip
_rank_options = add_options(
    option("--max-rank", type=POSITIVE, metavar="N", help="Largest rank of the result."),
    option("--energy", type=float, metavar="SHARE",
           help="Share of the squared norm (SVD energy) to keep, such as 0.95."),
)  # fmt: skip


@command(
    "export",
    click.argument("source", type=FILE, metavar="SOURCE",
                   help="A run, RUN@STEP or an adapter file, with an optional :STRENGTH. A run is its "
                   "selected checkpoint; without an evaluation the last one, which RUN@last names."),
    option("--for", "consumer", type=click.Choice([*CONSUMERS, "all"]), default="all",
           help="Program that will load the file; a1111 is also for Forge."),
    option("--out", type=FOLDER, metavar="DIR",
           help="Folder of the files; by default `exports` in the run, or beside the file."),
    option("--base", metavar="DIR", help="Base model folder; needed to convert DoRA and OFT."),
    _family,
    option("--max-rank", type=POSITIVE, metavar="N",
           help="Largest rank of the LoRA that other methods become for a program that loads only LoRA; by "
           "default 128."),
    option("--dtype", type=click.Choice(DTYPES), default="fp16",
           help="Number type of the file; the rounding error is printed."),
    _allow_loss,
    option("--apply-strength", is_flag=True,
           help="Multiply the strength into the weights, so that the file is used at 1; exact for LoRA, LoHa "
           "and LoKr. Without it the strength is in the metadata."),
    option("--allow-untrained", is_flag=True, help="Export an adapter without effect too."),
    option("--include-names", is_flag=True,
           help="Write the names of the adapter file and the base model into the metadata."),
    option("--no-card", is_flag=True,
           help="Write no model card beside the files, and no thumbnail into them."),
    example="lorakit export runs/dog --for comfyui",
)  # fmt: skip
def export_command(
    source: Path,
    consumer: str,
    out: Path | None,
    base: str | None,
    apply_strength: bool,
    no_card: bool,
    **values: Any,
) -> None:
    """Write an adapter for ComfyUI, A1111 or diffusers.

    Each file is read back and compared with the trained weights before it is written. Beside those of a run
    is a model card, README.md, with a grid of samples.
    """
    from lorakit.adapters.publishing.export_run import export_source
    from lorakit.adapters.sources import parse_adapter_source

    chosen = parse_adapter_source(str(source)).print_line()
    exported = export_source(
        chosen,
        consumer,
        out or chosen.export_folder(),
        base=find_export_base(chosen.run, base),
        apply_strength=apply_strength,
        card=not no_card,
        **values,
    )
    origin = {"step": chosen.step, "strength": chosen.strength, "strength_applied": apply_strength}
    rows = [one.to_json() | origin | {"reason": chosen.reason} for one in exported]
    lines = [one.summary() for one in exported]
    print_answer(rows, "\n".join(lines))
    if not apply_strength:
        _print_strength(chosen, "; or export it with --apply-strength")


def find_export_base(run: Path | None, base: str | None) -> Path | None:
    """Return the folder of `base`, else of the run's base model if it is on this machine."""
    from lorakit.config.recipe import load_recipe
    from lorakit.models import base_model

    if base is not None:
        return base_model.local_base_folder(base) or Path(base)
    return base_model.local_base_folder(load_recipe(run / "recipe.yaml").base) if run else None


def _print_strength(source: AdapterSource, remedy: str = "") -> None:
    """Say at which strength to use a written file, if it is not 1."""
    if source.strength != 1:
        text = f"note: use it at strength {source.strength:g} in the program, as its metadata says"
        print_line(text + remedy)


def _read_file(path: Path, family: str | None, **options: bool) -> LoadedAdapter:
    """Read the adapter that PATH or RUN@STEP names, and say which checkpoint of a run it is."""
    from lorakit.adapters.formats import read_adapter_file
    from lorakit.adapters.sources import find_adapter

    adapter = read_adapter_file(find_adapter(path).print_line().path, family, **options)
    for note in adapter.notes:
        print_line(f"note: {note}")
    return adapter


@command(
    "inspect",
    click.argument("file", type=FILE, metavar="FILE",
                   help="Adapter file, run, RUN@STEP or peft folder; or an image."),
    _family,
    example=["lorakit inspect dog.safetensors", "lorakit inspect samples/prompt-1-0.png"],
)  # fmt: skip
def inspect_command(file: Path, family: str | None) -> None:
    """Show an adapter's family, type, ranks and norms, and which programs load it.

    Of an image it shows the prompt, seed and hashes that it was generated from, and whether its signature
    (C2PA) is valid; the exit code is 3 if it is not.
    """
    from lorakit.imaging import inspect_image

    if file.is_file() and file.suffix.lower() in inspect_image.SUFFIXES:
        image = inspect_image.inspect_image(file)
        print_answer(image, lambda: _print_properties(image))
        inspect_image.require_unchanged(image)
        return
    from lorakit.adapters.formats.read import require_finite
    from lorakit.adapters.tools.inspect import inspect_adapter

    adapter = _read_file(file, family, allow_nonfinite=True, skip_biases_and_norms=True)
    properties = inspect_adapter(adapter)
    print_answer(properties, lambda: _print_properties(properties))
    require_finite(adapter.nonfinite_tensors, str(file))


def _print_properties(properties: dict[str, Any]) -> None:
    from lorakit.core.tables import print_table

    rows: list[tuple[object, ...]] = []
    for key, value in properties.items():
        if isinstance(value, dict):
            rows += [(key if index == 0 else "", *entry) for index, entry in enumerate(value.items())]
        else:
            rows.append((key, ", ".join(map(str, value)) if isinstance(value, list) else value, ""))
    print_table(("property", "value", "details"), rows)


@command(
    "check",
    _file,
    option("--for", "consumer", required=True, type=click.Choice(READERS),
           help="Program to check; kohya is sd-scripts, musubi is musubi-tuner."),
    _family,
    example="lorakit check dog.safetensors --for comfyui",
)  # fmt: skip
def check_command(file: Path, consumer: str, family: str | None) -> int:
    """Check whether a program loads an adapter file: yes, no, or partly with what it ignores.

    The exit code is 3 if it does not load it wholly.
    """
    from lorakit.adapters.sources import find_adapter
    from lorakit.adapters.tools.inspect import check_consumer_loads

    check = check_consumer_loads(find_adapter(file).print_line().path, consumer, family)
    print_answer({"loads": check.loads, "reason": check.reason}, f"{consumer}: {check.reason}")
    return 0 if check.loads else DataError.exit_code


@command(
    "convert",
    _file,
    click.argument("out", type=FILE, metavar="OUT", help="The .safetensors file to write."),
    option("--to", "layout", required=True, type=click.Choice(["diffusers", "kohya", "native"]),
           help="File layout: diffusers (dotted peft keys), kohya (sd-scripts) or native (the model authors' "
           "names)."),
    option("--dtype", type=click.Choice(DTYPES), default="fp32",
           help="Number type of the file; the rounding error is printed."),
    option("--max-rank", type=POSITIVE, metavar="N",
           help="Largest rank of the LoRA that other methods become; by default 128."),
    _allow_loss,
    _base,
    _family,
    example="lorakit convert dog.safetensors dog-kohya.safetensors --to kohya",
)  # fmt: skip
def convert_command(
    file: Path, out: Path, layout: str, base: Path | None, family: str | None, **values: Any
) -> None:
    """Write an adapter in another file layout."""
    from lorakit.adapters.formats import read_adapter_file
    from lorakit.adapters.formats.export import save_adapter
    from lorakit.adapters.formats.strength import with_strength
    from lorakit.adapters.sources import parse_adapter_source

    source = parse_adapter_source(str(file)).print_line()
    adapter = with_strength(read_adapter_file(source.path, family), source.strength)
    written = save_adapter(adapter, out, layout, base=base, **values)
    print_answer(written.to_json(), written.summary())
    _print_strength(source)


@command(
    "combine",
    _files,
    _out,
    option("--method", type=click.Choice(["concatenate", "svd", "ties", "dare", "dare-ties"]),
           default="concatenate",
           help="concatenate is exact, and its rank is the sum of the ranks; svd, ties (keeps the largest "
           "entries), dare (drops entries at random) and dare-ties are limited to --max-rank."),
    option("--max-rank", type=POSITIVE, metavar="N",
           help="Largest rank of all methods but concatenate; by default that of the adapters."),
    option("--density", type=float, default=0.5, metavar="SHARE",
           help="Fraction of the entries of each delta weight that ties and dare keep."),
    _base,
    _family,
    example="lorakit combine a.safetensors:0.7 b.safetensors:0.5 --out ab.safetensors",
)  # fmt: skip
def combine_command(
    files: tuple[str, ...], out: Path, base: Path | None, family: str | None, **values: Any
) -> None:
    """Combine several adapters into one."""
    from lorakit.adapters.formats.export import save_adapter
    from lorakit.adapters.tools.combine import combine_adapters

    inputs = [_read_weighted_adapter(text, family) for text in files]
    combined = combine_adapters(inputs, base_weights=_base_weights(base), **values)
    sources = [weighted.adapter.path for weighted in inputs if weighted.adapter.path]
    written = save_adapter(combined, out, sources=sources)
    print_answer(
        {"path": str(written.path), "num_tensors": written.num_tensors},
        f"{written.path}  {written.num_tensors} tensors",
    )
    for weighted in inputs:
        _warn_about_token(weighted.adapter)


@command(
    "resize",
    _file,
    _rank_options,
    _out,
    _base,
    _family,
    example="lorakit resize dog.safetensors --max-rank 8 --out dog-8.safetensors",
)
def resize_command(
    file: Path, out: Path, base: Path | None, family: str | None, max_rank: int | None, energy: float | None
) -> None:
    """Reduce the rank of an adapter.

    Give --max-rank, --energy or both. Each delta weight becomes its nearest LoRA (singular value
    decomposition).
    """
    from lorakit.adapters.tools.combine import resize_adapter

    adapter = _read_file(file, family)
    _save_reduced(
        resize_adapter(adapter, max_rank=max_rank, energy=energy, base_weights=_base_weights(base)), out
    )
    _warn_about_token(adapter)


@command(
    "extract",
    _base_argument,
    click.argument("model", type=FOLDER, metavar="MODEL", help="Folder of the fine-tuned model."),
    option("--targets", metavar="REGEX",
           help="Regular expression of the modules to compare; by default all matrices of the denoiser."),
    _rank_options,
    _out,
    example="lorakit extract base-model my-model --max-rank 32 --out style.safetensors",
)  # fmt: skip
def extract_command(base: Path, model: Path, out: Path, **values: Any) -> None:
    """Extract a LoRA from a fine-tuned model: its difference from the base model.

    Give --max-rank, --energy or both.
    """
    from lorakit.adapters.tools.extract import extract_adapter

    _save_reduced(extract_adapter(base, model, **values), out)


@command(
    "merge",
    click.argument("base", metavar="BASE",
                   help="Base model: an embedded name, a diffusers folder, .safetensors file or hub id; it "
                   "is only read."),
    _files,
    option("--out", required=True, type=FILE, metavar="PATH",
           help="New folder of the merged model, or a .safetensors file: a single checkpoint in the layout "
           "of the model's authors, for ComfyUI and A1111."),
    _family,
    example=[
        "lorakit merge base-model dog.safetensors:0.8 --out dog-model",
        "lorakit merge base.safetensors dog.safetensors --out dog-model.safetensors",
    ],
)  # fmt: skip
def merge_command(base: str, files: tuple[str, ...], out: Path, family: str | None) -> None:
    """Merge adapters into a copy of a base model."""
    from lorakit.adapters.tools.merge import merge_model
    from lorakit.models import base_model

    folder = Path(base) if Path(base).is_dir() else base_model.resolve_base(base)
    inputs = [_read_weighted_adapter(text, family, allow_embedding_only=True) for text in files]
    for weighted in inputs:
        _print_base_notes(weighted.adapter, folder)
    num_weights = merge_model(base, folder, inputs, out)
    tokens = [weighted.adapter.token for weighted in inputs if weighted.adapter.token]
    added = "".join(f", token {token} added" for token in tokens)
    print_answer(
        {"path": str(out), "num_weights": num_weights, "tokens": tokens},
        f"{out}  {num_weights} weights changed{added}",
    )


def _read_weighted_adapter(text: str, family: str | None, **options: bool) -> WeightedAdapter:
    """Read PATH or RUN@STEP, each with an optional :STRENGTH."""
    from lorakit.adapters.formats import read_adapter_file
    from lorakit.adapters.sources import parse_adapter_source
    from lorakit.adapters.tools.weighted import WeightedAdapter

    source = parse_adapter_source(text).print_line()
    return WeightedAdapter(read_adapter_file(source.path, family, **options), source.strength)


def _print_base_notes(adapter: LoadedAdapter, base: Path) -> None:
    """Say how the base model differs from the one that an adapter was trained on."""
    from lorakit.adapters import base_fit
    from lorakit.core.progress import print_line

    if base.is_dir():
        for note in base_fit.base_notes(adapter.lorakit_metadata, adapter.metadata, base):
            print_line(f"{adapter.path}: {note}")


def _base_weights(base: Path | None) -> BaseWeights | None:
    from lorakit.adapters.formats import BaseWeights

    return BaseWeights(base) if base else None


def _save_reduced(reduced: ReducedAdapter, out: Path) -> None:
    from lorakit.adapters.formats.export import save_adapter

    path = save_adapter(reduced.adapter, out).path
    ranks = [delta.rank for delta in reduced.adapter.deltas.values()]
    energy, module = min((energy, module) for module, energy in reduced.retained_energy.items())
    answer = {
        "path": str(path),
        "num_modules": len(ranks),
        "ranks": [min(ranks), max(ranks)],
        "min_energy": energy,
    }
    text = f"{path}  {len(ranks)} modules of rank {min(ranks)} to {max(ranks)}"
    print_answer(answer, f"{text}; each keeps at least {energy:.4f} of its energy ({module} the least)")


def _warn_about_token(adapter: LoadedAdapter) -> None:
    """Say that the vectors of a new token are not in the written file: they are not the weight of a
    module."""
    if adapter.token:
        message = f"note: the new token {adapter.token} is not in this file; `lorakit export` writes it"
        print_line(message)
