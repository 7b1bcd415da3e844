"""The adapter that a new run starts from (`init_from`): any file or folder that `lorakit inspect` reads.

At step 0 the delta weight of every module is that of the file, whatever its layout, alpha or (smaller) rank.
What would be lost is refused before anything is cached; what starts fresh is named in the log.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from lorakit import adapters
from lorakit.adapters import base_fit, delta_parameters, textual_inversion
from lorakit.adapters.delta_parameters import Misfit
from lorakit.adapters.formats import LoadedAdapter, LokrDelta
from lorakit.adapters.formats.read import ADAPTER_FILE_NAMES
from lorakit.adapters.planning import PlannedAdapters
from lorakit.adapters.target_patterns import shortest_endings
from lorakit.adapters.targets import AdapterSpec
from lorakit.config.recipe import Recipe
from lorakit.core import checksums
from lorakit.core.errors import ConfigError
from lorakit.models.families.family import Family

LogFn = Callable[[str], None]
_NUM_EXAMPLES = 3


@dataclass(frozen=True)
class InitialAdapter:
    """An adapter that was checked against the plan of a run, and the hash of its content."""

    adapter: LoadedAdapter
    content_hash: str


@dataclass(frozen=True)
class _LayerMisfit:
    """A module of a run that cannot start with the delta weight of the file."""

    name: str
    component: str
    module: str
    misfit: Misfit


def check_initial_adapter(
    recipe: Recipe, source: Path, planned: PlannedAdapters, family: Family, base_folder: Path, log: LogFn
) -> InitialAdapter:
    """Check the adapter that a run starts from against its plan.

    The planned networks get the planned adapters. `log` gets what starts fresh, and how the base model
    differs from the adapter's. Raises ConfigError for an adapter that does not fit the base model, and for
    one that the recipe would change or lose a part of, with the keys to set.
    """
    where = f"init_from: {source}"
    adapter = base_fit.read_for_base(source, family, planned.networks)
    layers = _adapted_layers(planned.specs)
    if lost := [name for name in adapter.deltas if name not in layers]:
        raise _lost_error(recipe, lost, adapter, planned, where)
    _check_token(recipe, adapter, planned.networks, where)
    for component, spec in planned.specs.items():
        adapters.inject_adapter(planned.networks[component], spec=spec)
    _check_layers(recipe, source, adapter, planned, where)
    for note in base_fit.base_notes(adapter.lorakit_metadata, adapter.metadata, base_folder):
        log(f"init_from: {note}")
    log(f"init_from: {_summary(recipe, adapter, planned)}")
    return InitialAdapter(adapter, source_hash(source))


def load_initial_adapter(adapter: LoadedAdapter, networks: Mapping[str, nn.Module]) -> None:
    """Set the injected adapters of a new run so that their delta weights are those of the file."""
    layers = {
        base_fit.file_name(component, module): layer
        for component, network in networks.items()
        for module, layer in network.named_modules()
    }
    for name, delta in adapter.deltas.items():
        delta_parameters.set_delta(layers[name], delta)
    for component, vectors in adapter.embeddings.items():
        for embedding in textual_inversion.learned_embeddings(networks[component]):
            embedding.learned.data.copy_(vectors)


def source_hash(source: Path) -> str:
    """Return the hash of an adapter's content: of its file, and of peft's configuration beside it."""
    if not source.is_dir():
        return checksums.sha256_file(source)
    file = next(source / name for name in ADAPTER_FILE_NAMES if (source / name).is_file())
    config = source / "adapter_config.json"
    if not config.is_file():
        return checksums.sha256_file(file)
    return checksums.sha256_bytes(f"{checksums.sha256_file(file)} {checksums.sha256_file(config)}".encode())


def _adapted_layers(specs: Mapping[str, AdapterSpec]) -> dict[str, tuple[str, str]]:
    """Return (component, module) of each module that a run adapts, by its name in files."""
    return {
        base_fit.file_name(component, module): (component, module)
        for component, spec in specs.items()
        for module in spec.target_modules
    }


def _lost_error(
    recipe: Recipe, lost: Sequence[str], adapter: LoadedAdapter, planned: PlannedAdapters, where: str
) -> ConfigError:
    """Return the error for modules of the file that the recipe does not adapt, with the keys to set."""
    settings = []
    if recipe.adapter.type == "none":
        settings.append(f"adapter.type={adapter.method}")
    texts = [name for name in lost if name.startswith("text_encoder")]
    if texts:
        settings.append("adapter.text_encoder=true")
    denoisers = [name for name in planned.networks if not name.startswith("text_encoder")]
    if len(texts) < len(lost):
        if not recipe.adapter.denoiser:
            settings.append("adapter.denoiser=true")
        modules = {name.split(".", 1)[1] for name in adapter.deltas if name.split(".", 1)[0] in denoisers}
        endings = shortest_endings(modules, planned.networks[denoisers[0]])
        settings.append(f"adapter.targets=[{','.join(endings)}]")
        if recipe.adapter.blocks is not None:
            settings.append("adapter.blocks=null")
    return ConfigError(
        f"this run would lose {len(lost)} of the {len(adapter.deltas)} modules of the adapter to start from,"
        f" such as {_examples(lost)}",
        where=where,
        remedy=f"adapt them too: set {' and '.join(settings)}",
    )


def _check_token(
    recipe: Recipe, adapter: LoadedAdapter, networks: Mapping[str, nn.Module], where: str
) -> None:
    """Raise ConfigError if the run does not train the new token of the file."""
    if not adapter.embeddings:
        return
    entries, settings = adapter.lorakit_metadata["textual_inversion"], recipe.textual_inversion
    own = {"token": settings.token, "num_vectors": settings.num_vectors} if settings else {}
    if any(own.get(key) != entries[key] for key in ("token", "num_vectors")):
        raise ConfigError(
            f"the adapter to start from has a new token, {entries['token']!r} of {entries['num_vectors']}"
            " vectors, and this run does not train it",
            where=where,
            remedy=f"set textual_inversion.token={entries['token']},"
            f" textual_inversion.num_vectors={entries['num_vectors']} and"
            f" textual_inversion.initializer_token={entries['initializer_token']}",
        )
    for component, vectors in adapter.embeddings.items():
        network: nn.Module | None = networks.get(component)
        width = None if network is None else network.get_input_embeddings().weight.shape[1]  # type: ignore[operator]
        if width != vectors.shape[1]:
            raise ConfigError(
                f"the new token's vectors for {component} have {vectors.shape[1]} values, in this base model"
                f" {width or 'there is no such text encoder'}",
                where=where,
                remedy="use the base model that it was trained on, or a fine-tune of that model",
            )


def _check_layers(
    recipe: Recipe, source: Path, adapter: LoadedAdapter, planned: PlannedAdapters, where: str
) -> None:
    """Raise ConfigError if some module cannot make the change of the file, with the keys to set."""
    layers = _adapted_layers(planned.specs)
    misfits = []
    for name, delta in adapter.deltas.items():
        component, module = layers[name]
        layer = planned.networks[component].get_submodule(module)
        if misfit := delta_parameters.find_misfit(layer, delta):
            misfits.append(_LayerMisfit(name, component, module, misfit))
    if not misfits:
        return
    kind = misfits[0].misfit.kind
    same_kind = [one for one in misfits if one.misfit.kind == kind]
    names = f"{len(same_kind)} modules, such as {_examples([one.name for one in same_kind])}"
    resize = _resize_command(recipe, source, adapter, planned)
    if kind == "method":
        types = sorted({str(one.misfit.needed) for one in same_kind if one.misfit.needed})
        message = (
            f"the adapter to start from has type {adapter.method}, this run {recipe.adapter.type}: {names}"
        )
        remedy = f"set adapter.type={types[0]}" if len(types) == 1 else ""
        if factor := _common_factor(adapter, planned):
            remedy += f" and adapter.factor={factor}"
    elif kind == "factor":
        message = f"the small factors of the adapter to start from have another size: {names}"
        factor = _common_factor(adapter, planned)
        remedy = f"set adapter.factor={factor}" if factor else "use an adapter with the usual factors of LoKr"
    else:
        message, remedy = _rank_problem(recipe, same_kind, planned, names)
    raise ConfigError(message, where=where, remedy=", or ".join(filter(None, (remedy, resize))))


def _common_factor(adapter: LoadedAdapter, planned: PlannedAdapters) -> str:
    """Return the `adapter.factor` of a LoKr adapter; empty for other methods, or if it has several."""
    layers, common = _adapted_layers(planned.specs), None
    for name, delta in adapter.deltas.items():
        if not isinstance(delta, LokrDelta):
            return ""
        component, module = layers[name]
        factors = delta_parameters.lokr_factors(planned.networks[component].get_submodule(module), delta)
        common = factors if common is None else common & factors
    return min(common or {""}, key=lambda text: (text != "null", text))


def _rank_problem(
    recipe: Recipe, misfits: Sequence[_LayerMisfit], planned: PlannedAdapters, names: str
) -> tuple[str, str]:
    """Return the message and the keys to set for modules whose rank in the file is too large."""
    needed: dict[str, int] = {}
    for one in misfits:
        spec = planned.specs[one.component]
        in_pattern = one.module in spec.rank_pattern
        is_convolution = in_pattern and spec.rank_pattern[one.module] == recipe.adapter.conv_rank
        key = "conv_rank" if is_convolution else "rank_pattern" if in_pattern else "rank"
        needed[key] = max(needed.get(key, 0), int(one.misfit.needed))
    rank = planned.specs[misfits[0].component]
    own = rank.rank_pattern.get(misfits[0].module, rank.rank)
    message = f"the adapter to start from has rank {misfits[0].misfit.needed}, this run {own}: {names}"
    settings = [
        f"{value} or more in adapter.rank_pattern" if key == "rank_pattern" else f"adapter.{key}={value}"
        for key, value in needed.items()
    ]
    return message, f"set {' and '.join(settings)}"


def _resize_command(recipe: Recipe, source: Path, adapter: LoadedAdapter, planned: PlannedAdapters) -> str:
    """Return the command that makes a LoRA of a rank that fits the run; empty if the run is of no LoRA."""
    if recipe.adapter.type not in ("lora", "rslora", "dora"):
        return ""
    specs = planned.specs.values()
    smallest = min(min([spec.rank, *spec.rank_pattern.values()]) for spec in specs)
    needs_base = any(delta.needs_base for delta in adapter.deltas.values())
    base = " --base DIR" if needs_base else ""
    return (
        f"make it a LoRA of rank {smallest} first, with a measured error:"
        f" `lorakit resize {source} --max-rank {smallest}{base} --out FILE.safetensors`"
    )


def _summary(recipe: Recipe, adapter: LoadedAdapter, planned: PlannedAdapters) -> str:
    """Return one line: the modules that start from the file, those with more rank, those that start fresh."""
    layers = _adapted_layers(planned.specs)
    name = adapter.path.name if adapter.path else "the adapter"
    text = f"{len(adapter.deltas)} modules start with the delta weights of {name}"
    ranks = {adapter.deltas[module].rank for module in adapter.deltas}
    larger = [
        module
        for module in adapter.deltas
        if _rank(planned, *layers[module]) > adapter.deltas[module].rank > 0
        and adapter.deltas[module].method in ("lora", "dora", "loha")
    ]
    if larger:
        text += (
            f"; {len(larger)} have more rank here than there (up to {max(ranks)}):"
            " the additional part starts without effect"
        )
    if fresh := [module for module in layers if module not in adapter.deltas]:
        text += f"; {len(fresh)} modules that it does not have start fresh, such as {_examples(fresh)}"
    if recipe.textual_inversion:
        text += (
            f"; the new token {recipe.textual_inversion.token}"
            f" {'starts with its vectors' if adapter.embeddings else 'starts fresh'}"
        )
    return text


def _rank(planned: PlannedAdapters, component: str, module: str) -> int:
    spec = planned.specs[component]
    return spec.rank_pattern.get(module, spec.rank)


def _examples(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > _NUM_EXAMPLES else ""
    return ", ".join(names[:_NUM_EXAMPLES]) + more
