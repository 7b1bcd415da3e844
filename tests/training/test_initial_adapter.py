"""A run that starts from an adapter of any origin starts with its delta weights, or is refused."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from lorakit import adapters
from lorakit.adapters import formats, planning, text_encoders
from lorakit.config.recipe import Recipe, parse_recipe
from lorakit.core import storage
from lorakit.core.errors import ConfigError, LorakitError
from lorakit.models import families
from lorakit.training.initial_adapter import check_initial_adapter, load_initial_adapter
from tests import runs, tiny
from tests.adapters.formats.runs import ALPHA, RANK, train_method

UNET, XL, DIT, FLUX, EXPERTS = "sd15", "sdxl", "sd3", "flux1-dev", "wan-2.2"
FEW = ["to_q", "to_out.0"]


@dataclass(frozen=True)
class Start:
    """The state of a run before its first step."""

    deltas: dict[str, formats.DeltaWeight]
    log: str
    networks: dict[str, torch.nn.Module]


def recipe_for(base: str, **settings: Any) -> Recipe:
    keys = {key: settings.pop(key) for key in ("textual_inversion",) if key in settings}
    tree = {"base": str(tiny.tiny_folder(base)), "dataset": "d", "out": "o", "adapter": settings}
    return parse_recipe(tree | keys)


def start(base: str, source: Path, folder: Path, **settings: Any) -> Start:
    """Plan a run that starts from `source`, load its initial state, and read it back as a checkpoint."""
    base_folder, recipe, lines = tiny.tiny_folder(base), recipe_for(base, **settings), []
    family = families.detect_family(base_folder)
    planned = planning.plan_adapters(recipe, family, base_folder, lines.append)
    initial = check_initial_adapter(recipe, source, planned, family, base_folder, lines.append)
    pipe = tiny.build(base)
    specs = text_encoders.inject_adapters(recipe, family, pipe)
    adaptable = text_encoders.adaptable_networks(family, pipe)
    networks = {component: adaptable[component] for component in specs}
    load_initial_adapter(initial.adapter, networks)
    metadata = adapters.adapter_metadata(specs) | {"family": family.name, "base_hash": ""}
    metadata |= text_encoders.textual_inversion_metadata(recipe)
    file = storage.write_safetensors(
        folder / "started.safetensors",
        adapters.adapter_state_dict(networks),
        adapters.pack_metadata(metadata),
    )
    return Start(formats.read_adapter_file(file).deltas, "\n".join(lines), networks)


def assert_same_deltas(base: str, source: Path, started: Start, family: str | None = None) -> None:
    """Every delta weight of the file is that of the run, and the run has no other."""
    expected = formats.read_adapter_file(source, family).deltas
    weights = formats.BaseWeights(tiny.tiny_folder(base))
    assert expected.keys() <= started.deltas.keys()
    assert expected
    for name, delta in started.deltas.items():
        base_weight = weights.read_weight(name).float() if delta.needs_base else None
        if name in expected:
            theirs, ours = expected[name].dense(base_weight), delta.dense(base_weight)
            error = torch.linalg.vector_norm(theirs - ours.reshape(theirs.shape))
            assert error <= 1e-5 * max(float(torch.linalg.vector_norm(theirs)), 1e-3), name
            assert theirs.any()
        else:
            assert torch.allclose(delta.dense(base_weight), torch.zeros(()), atol=1e-6), name


def refusal(base: str, source: Path, folder: Path, **settings: Any) -> str:
    with pytest.raises(LorakitError) as caught:
        start(base, source, folder, **settings)
    return str(caught.value)


def lora_file(path: Path, stems: dict[str, tuple[int, int]], *, rank: int = 3, **options: Any) -> Path:
    """Write LoRA factors for each stem as a trainer does, with its names (`up`, `down`) and `alpha`."""
    generator, tensors = torch.Generator().manual_seed(3), {}
    up, down = options.get("up", "lora_B.weight"), options.get("down", "lora_A.weight")
    dtype = options.get("dtype", torch.float32)
    for number, (stem, (height, width)) in enumerate(stems.items()):
        tensors[f"{stem}.{down}"] = torch.randn(rank, width, generator=generator).to(dtype)
        tensors[f"{stem}.{up}"] = torch.randn(height, rank, generator=generator).to(dtype)
        if options.get("alpha"):
            tensors[f"{stem}.alpha"] = torch.tensor(0.5 + number % 3)
    return storage.write_safetensors(path, tensors, {"format": "pt"} | options.get("metadata", {}))


def shapes(base: str, component: str, endings: list[str]) -> dict[str, tuple[int, int]]:
    """Sizes of the linear layers of a network by name."""
    network = getattr(tiny.tiny_pipeline(base), component)
    names = adapters.targets.find_target_modules(network, endings)
    return {name: tuple(network.get_submodule(name).weight.shape) for name in names}


# layouts of other programs


def kohya(path: Path) -> tuple[str, Path, dict[str, Any]]:
    """sd-scripts, half precision, with an alpha for each module."""
    stems = {f"lora_unet_{name.replace('.', '_')}": s for name, s in shapes(UNET, "unet", FEW).items()}
    file = lora_file(path, stems, up="lora_up.weight", down="lora_down.weight", alpha=True, dtype=torch.half)
    return UNET, file, {"targets": FEW}


def kohya_xl(path: Path) -> tuple[str, Path, dict[str, Any]]:
    """sd-scripts with both text encoders."""
    stems = {f"lora_unet_{name.replace('.', '_')}": s for name, s in shapes(XL, "unet", FEW).items()}
    for number, component in ((1, "text_encoder"), (2, "text_encoder_2")):
        for name, size in shapes(XL, component, ["q_proj", "out_proj"]).items():
            if component == "text_encoder" and name.rpartition(".layers.")[2].startswith("1"):
                continue  # not read by the pipeline, so not adapted
            full = f"text_model.{name}" if not name.startswith("text_model") else name
            stems[f"lora_te{number}_{full.replace('.', '_')}"] = size
    file = lora_file(path, stems, up="lora_up.weight", down="lora_down.weight", alpha=True)
    return XL, file, {"targets": FEW, "text_encoder": True}


def ai_toolkit(path: Path) -> tuple[str, Path, dict[str, Any]]:
    """ai-toolkit: diffusers' names with `transformer.`, bf16, no alpha."""
    stems = {f"transformer.{name}": s for name, s in shapes(FLUX, "transformer", FEW).items()}
    return FLUX, lora_file(path, stems, dtype=torch.bfloat16), {"targets": FEW}


def native_fused(path: Path) -> tuple[str, Path, dict[str, Any]]:
    """Names of the published network, query, key and value in one layer."""
    width = tiny.tiny_pipeline(DIT).transformer.inner_dim
    stems = {
        f"diffusion_model.joint_blocks.{n}.x_block.attn.{part}": (height * width, width)
        for n in range(2)
        for part, height in (("qkv", 3), ("proj", 1))
    }
    return DIT, lora_file(path, stems), {"targets": ["to_q", "to_k", "to_v", "to_out"]}


def onetrainer(path: Path) -> tuple[str, Path, dict[str, Any]]:
    """OneTrainer: the published network's dotted names, `lora_up` and `lora_down`, alpha."""
    width = tiny.tiny_pipeline(DIT).transformer.inner_dim
    stems = {f"model.diffusion_model.joint_blocks.{n}.x_block.attn.proj": (width, width) for n in range(2)}
    names = {"up": "lora_up.weight", "down": "lora_down.weight"}
    metadata = {"ot_revision": "0", "modelspec.architecture": "stable-diffusion-3-medium/lora"}
    return DIT, lora_file(path, stems, alpha=True, metadata=metadata, **names), {"targets": ["to_out"]}


def peft_folder(path: Path) -> tuple[str, Path, dict[str, Any]]:
    """peft's own folder, whose configuration has the alpha."""
    folder = path.parent / "peft"
    stems = {f"base_model.model.{name}": s for name, s in shapes(UNET, "unet", FEW).items()}
    lora_file(folder / "adapter_model.safetensors", stems)
    config = {"peft_type": "LORA", "r": 3, "lora_alpha": 7.5, "target_modules": FEW}
    storage.write_json(folder / "adapter_config.json", config)
    return UNET, folder, {"targets": FEW}


def experts(path: Path) -> tuple[str, Path, dict[str, Any]]:
    """A file for one expert with the names of a single network; its name says which."""
    stems = {f"diffusion_model.{n.replace('attn1', 'self_attn').replace('to_q', 'q')}": s
             for n, s in shapes(EXPERTS, "transformer", ["attn1.to_q"]).items()}  # fmt: skip
    return EXPERTS, lora_file(path.with_name("dog-low_noise.safetensors"), stems), {"targets": ["attn1.to_q"]}


LAYOUTS = [kohya, kohya_xl, ai_toolkit, native_fused, onetrainer, peft_folder]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("rank", "alpha"), [(3, 3.0), (8, 20.0)])
def test_a_run_starts_with_the_delta_weights_of_any_layout(layout, rank, alpha, tmp_path):
    base, source, settings = layout(tmp_path / "theirs.safetensors")
    started = start(base, source, tmp_path, rank=rank, alpha=alpha, **settings)
    family = families.detect_family(tiny.tiny_folder(base)).name
    assert_same_deltas(base, source, started, family)
    assert ("more rank here" in started.log) is (rank == 8)


def test_the_name_of_a_file_or_an_export_says_which_expert_it_is_of(tmp_path):
    base, source, settings = experts(tmp_path / "x")
    started = start(base, source, tmp_path, rank=3, alpha=3, **settings)
    changed = {name for name, delta in started.deltas.items() if delta.dense().any()}
    assert changed
    assert all(name.startswith("transformer_2.") for name in changed)
    whole = tmp_path / "run.safetensors"
    storage.write_safetensors(
        whole,
        adapters.adapter_state_dict(started.networks),
        adapters.pack_metadata({"type": "lora", "rank": 3, "alpha": 3.0, "family": "wan", "base_hash": ""}),
    )
    exported = formats.export_adapter(whole, "diffusers", tmp_path / "exports", allow_untrained=True)
    (low,) = [file.path for file in exported if "low" in file.path.name]
    moved = storage.copy_file(low, tmp_path / "renamed.safetensors")
    again = start(base, moved, tmp_path, rank=3, alpha=3, **settings)
    assert {name for name, delta in again.deltas.items() if delta.dense().any()} == changed


METHODS = {"lora": {}, "rslora": {}, "dora": {}, "loha": {}, "lokr": {"factor": 2}, "oft": {}}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("base", [UNET, DIT])
def test_every_method_starts_with_its_delta_weights_whatever_the_alpha(method, base, tmp_path):
    """The file has alpha 10 and rank 4, the run another alpha."""
    source = tmp_path / "theirs.safetensors"
    train_method(base, source, method, targets=FEW)
    alpha = 16 if method == "oft" else 2 * ALPHA
    settings = {"type": method, "rank": RANK, "alpha": alpha, "targets": FEW} | METHODS[method]
    started = start(base, source, tmp_path, **settings)
    assert_same_deltas(base, source, started)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("lora", {"type": "rslora", "rank": 9, "alpha": 3}),
        ("rslora", {"type": "lora", "rank": 4, "alpha": 3}),
        ("lora", {"type": "dora", "rank": 6, "alpha": 3}),
        ("lora", {"rank": 4, "alpha": 3, "rank_pattern": {"to_q": 7}, "alpha_pattern": {"to_out.0": 30.0}}),
        ("loha", {"type": "loha", "rank": 6, "alpha": 1}),
        ("dora", {"type": "dora", "rank": 6, "alpha": 1}),
        ("lokr", {"type": "lokr", "rank": 5, "alpha": 1, "factor": 2}),
        ("lokr-dense", {"type": "lokr", "rank": 100, "alpha": 1, "factor": 8}),
    ],
)
def test_another_rank_scale_or_kind_of_lora_keeps_the_delta_weights(method, settings, tmp_path):
    source = tmp_path / "theirs.safetensors"
    train_method(UNET, source, method, targets=FEW)
    started = start(UNET, source, tmp_path, targets=FEW, **settings)
    assert_same_deltas(UNET, source, started)


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("consumer", ["comfyui", "diffusers"])
@pytest.mark.parametrize("base", [UNET, DIT])
def test_a_run_starts_from_its_own_exports(method, consumer, base, tmp_path):
    source = tmp_path / "run.safetensors"
    train_method(base, source, method, targets=FEW)
    folder = tiny.tiny_folder(base)
    (exported,) = formats.export_adapter(source, consumer, tmp_path / "e", base=folder, dtype="fp32")
    started = start(base, exported.path, tmp_path, type=method, rank=RANK, alpha=3, targets=FEW)
    assert_same_deltas(base, source, started)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_a_file_of_twice_the_rank_is_started_from_with_that_rank(init, tmp_path):
    network = {"unet": tiny.build(UNET).unet}
    names = adapters.targets.find_target_modules(network["unet"], FEW)
    spec = adapters.AdapterSpec("lora", 2, 4, tuple(names), init)
    adapters.inject_adapter(network["unet"], spec=spec)
    for _, parameter in adapters.trainable_parameters(network["unet"]):
        parameter.data += 0.1
    metadata = spec.metadata("unet") | {"family": "sd15", "base_hash": ""}
    source = storage.write_safetensors(
        tmp_path / "a.safetensors", adapters.adapter_state_dict(network), adapters.pack_metadata(metadata)
    )
    assert "set adapter.rank=4" in refusal(UNET, source, tmp_path, rank=2, targets=FEW)
    assert_same_deltas(UNET, source, start(UNET, source, tmp_path, rank=4, alpha=1, targets=FEW))


@pytest.mark.parametrize(
    ("method", "settings", "remedy"),
    [
        ("lora", {"rank": 2}, "set adapter.rank=4, or make it a LoRA of rank 2"),
        ("dora", {"rank": 4}, "set adapter.type=dora"),
        ("loha", {"rank": 4}, "set adapter.type=loha"),
        ("lokr", {"type": "loha", "rank": 4}, "set adapter.type=lokr"),
        ("lokr", {"type": "lokr", "rank": 4, "factor": 4}, "set adapter.factor=2"),
        ("oft", {"type": "oft", "rank": 8}, "set adapter.rank=4"),
        ("lora", {"rank": 4, "rank_pattern": {"to_q": 2}}, "4 or more in adapter.rank_pattern"),
        ("lora", {"rank": 4, "targets": ["to_q"]}, "adapter.targets=[to_out.0,to_q]"),
        ("lora", {"rank": 4, "blocks": ["mid_block"]}, "adapter.blocks=null"),
    ],
)
def test_a_run_that_would_change_the_adapter_is_refused_with_the_keys_to_set(
    method, settings, remedy, tmp_path
):
    source = tmp_path / "theirs.safetensors"
    train_method(UNET, source, method, targets=FEW)
    message = refusal(UNET, source, tmp_path, **{"targets": FEW} | settings)
    assert remedy in message
    assert "where: init_from:" in message
    changes = [part.strip(" ,") for part in message.split("set ")[-1].split() if "=" in part]
    fixed = {"targets": FEW} | settings
    for change in changes:
        key, value = change.removeprefix("adapter.").rstrip(",").split("=")
        if key in ("rank", "type", "factor", "targets", "blocks"):
            fixed[key] = [v for v in value.strip("[]").split(",")] if "[" in value else _plain(value)
    if changes:
        assert_same_deltas(UNET, source, start(UNET, source, tmp_path, **fixed))


def _plain(value: str) -> Any:
    return json.loads(value) if value in ("null",) or value.isdigit() else value


def test_new_parts_start_fresh_and_are_named(tmp_path):
    source = tmp_path / "theirs.safetensors"
    train_method(XL, source, "lora", targets=["to_q"])
    started = start(XL, source, tmp_path, rank=4, targets=["to_q", "to_k"], text_encoder=True)
    assert_same_deltas(XL, source, started)
    assert "modules that it does not have start fresh, such as unet." in started.log
    source = tmp_path / "texts.safetensors"
    train_method(XL, source, "lora", targets=["to_q"], texts=["text_encoder_2"])
    message = refusal(XL, source, tmp_path, rank=4, targets=["to_q"])
    assert "adapter.text_encoder=true" in message


@pytest.mark.parametrize(("source_base", "base"), [(UNET, DIT), (DIT, UNET), (UNET, XL), (FLUX, DIT)])
def test_an_adapter_of_another_family_is_refused_with_both(source_base, base, tmp_path):
    source = tmp_path / "theirs.safetensors"
    train_method(source_base, source, "lora", targets=FEW)
    names = [families.detect_family(tiny.tiny_folder(name)).name for name in (source_base, base)]
    message = refusal(base, source, tmp_path, rank=4, targets=FEW)
    assert f"the adapter has family {names[0]}, this base model {names[1]}" in message


@pytest.mark.parametrize("layout", [kohya, ai_toolkit, native_fused])
def test_other_shapes_are_refused_with_the_first_five_modules(layout, tmp_path):
    base, source, settings = layout(tmp_path / "theirs.safetensors")
    tensors = storage.read_safetensors(source)
    is_down = {key: ".lora_down." in key or ".lora_A." in key for key in tensors}
    wide = {key: torch.cat([t, t], 1) if is_down[key] else t for key, t in tensors.items()}
    storage.write_safetensors(source, wide, {"format": "pt"})
    if layout is native_fused:  # its query would have other outputs
        wide = {k: torch.cat([t, t], 0) if "lora_B" in k else t for k, t in wide.items()}
        storage.write_safetensors(source, wide, {"format": "pt"})
    message = refusal(base, source, tmp_path, rank=3, **settings)
    assert "does not fit this base model" in message
    count = len(formats.read_adapter_file(source, families.detect_family(tiny.tiny_folder(base)).name).deltas)
    assert message.count("in the base model ") == min(5, count)


def test_a_damaged_file_and_a_missing_one_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no such adapter"):
        start(UNET, tmp_path / "nothing", tmp_path)
    storage.write_safetensors(tmp_path / "x.safetensors", {"weight": torch.ones(2)})
    assert "unknown adapter layout" in refusal(UNET, tmp_path / "x.safetensors", tmp_path)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.make_dataset(tmp_path_factory.mktemp("data"), 2)


def test_a_run_from_a_foreign_adapter_is_resumed_to_the_same_bytes(data, tmp_path):
    base, source, settings = kohya(tmp_path / "theirs.safetensors")
    tree = {
        "adapter": {"rank": 4, "alpha": 1, **settings},
        "train": {"steps": 4, "batch_size": 1, "save_every": 2, "precision": "fp32"},
        "init_from": str(source),
    }
    files = [
        runs.make_recipe(tmp_path / f"{n}.json", tiny.tiny_folder(base), data, tmp_path / n, **tree)
        for n in ("whole", "killed")
    ]
    whole = runs.train(files[0])
    with runs.killed_at(3):
        runs.train(files[1])
    killed = runs.train(files[1])
    assert (whole / "adapter.safetensors").read_bytes() == (killed / "adapter.safetensors").read_bytes()
    assert "start with the delta weights of theirs.safetensors" in (whole / "log.txt").read_text()
