"""Settings of ai-toolkit: a YAML file with one process."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lorakit.config.recipe_import import base_models
from lorakit.config.recipe_import.draft import Draft, Rule, Without, not_needed
from lorakit.config.recipe_import.source import Source
from lorakit.core.errors import ConfigError

_FROM_BASE = not_needed("read from the base model")
_PLANNER = not_needed("left to lorakit's planner, which fits the run into the memory")
_TIMESTEPS = {
    "sigmoid": "logit_normal",
    "linear": "uniform",
    "flux_shift": "logit_normal",
    "shift": "uniform",
    "lumina2_shift": "logit_normal",
}
RULES: dict[str, Rule] = {
    **dict.fromkeys(
        (
            "arch",
            "is_flux",
            "is_v2",
            "is_v3",
            "is_xl",
            "is_v_pred",
            "noise_scheduler",
            "sampler",
            "is_lumina2",
            "is_pixart",
            "is_auraflow",
            "is_ssd",
            "is_vega",
            "use_flux_cfg",
        ),
        _FROM_BASE,
    ),
    **dict.fromkeys(
        (
            "low_vram",
            "quantize_te",
            "qtype_te",
            "split_model_over_gpus",
            "layer_offloading",
            "unload_text_encoder",
            "layer_offloading_transformer_percent",
            "layer_offloading_text_encoder_percent",
            "gradient_checkpointing",
            "auto_memory",
        ),
        _PLANNER,
    ),
    **dict.fromkeys(("job", "type", "version", "log_every", "verbose"), not_needed("it changes no result")),
    "save.dtype": Without("see lorakit export"),
    "assistant_lora_path": Without("merge it into the base model first: lorakit merge --help"),
    "extras_name_or_path": Without("write it after the base model: base=FILE@FOLDER"),
    "sample.num_frames": Without("samples have `frames` frames"),
    "train_high_noise": Without("both experts are trained; see adapter.targets"),
    "train_low_noise": Without("both experts are trained; see adapter.targets"),
    "switch_boundary_every": Without("each step trains the expert of its timestep"),
    "sample.guidance_scale": "samples.guidance_scale",
    "slider.batch_full_slide": Without("each step trains both directions"),
    "slider.resolutions.0": "resolution",
    "skip_first_sample": Without("the sheet of samples starts with the base model's"),
    "disable_sampling": Without("a recipe without samples.prompts generates none"),
    "walk_seed": Without("each prompt has its own seeds, in its line of the prompt file"),
    "sample_start_step": Without("samples are generated every samples.every steps"),
    "content_or_style": Without("see objective.timesteps and objective.logit_mean"),
    "content_or_style_reg": Without("see objective.timesteps and objective.logit_mean"),
    "train_unet": lambda draft, setting, value: _only_text(draft, value),
    "cache_text_embeddings": not_needed("text embeddings are always cached"),
    "unconditional_prompt": Without("the empty caption is the pipeline's own"),
    "blank_prompt_preservation": Without("see objective.output_preservation"),
    "diff_output_preservation_class": "class_noun",
    "max_denoising_steps": Without("lorakit trains all timesteps"),
    "network_multiplier": Without("samples have the adapter at strength 1"),
    "ctrl_img": Without("name the image in the prompt file: see examples/edit-pairs.md"),
    "control_path": Without("the source lies beside each image: see examples/edit-pairs.md"),
    "mask_path": Without("masks lie beside the images: see examples/data.md"),
    "is_reg": Without("class images are `class_images`"),
    "bypass_guidance_embedding": Without("networks with a guidance input are trained with guidance 1"),
    "fps": Without("videos are used at the frame rate of the base model"),
    "qtype": Without("see memory.quantize"),
}


def read(source: Source, draft: Draft) -> None:
    """Fill a draft from the one process of a configuration; ConfigError if it has several."""
    process = _only_process(source)
    kind = str(process.get("type", ""))
    draft.settings = {
        name.replace("config.process.0.", ""): value
        for name, value in draft.settings.items()
        if not name.startswith("meta.")
    }
    _out(draft)
    model = str(draft.settings.get("model.arch") or draft.settings.get("model.name_or_path") or "")
    _adapter(draft, model)
    _quantization(draft)
    _timesteps(draft)
    _moving_average(draft)
    _datasets(draft, process)
    _samples(draft, process)
    if "slider" in kind:
        _slider(draft, process)
    if draft.settings.get("train.diff_output_preservation"):
        draft.take("train.diff_output_preservation")
        weight = draft.take("train.diff_output_preservation_multiplier", default=1.0)
        draft.recipe["objective.output_preservation"] = float(weight)
    if draft.take("logging.use_wandb"):
        draft.recipe["tracker"] = "wandb"
    draft.take_section("logging")
    draft.apply(RULES)


def _only_process(source: Source) -> Mapping[str, Any]:
    config = source.tree.get("config") if isinstance(source.tree, Mapping) else None
    processes = config.get("process") if isinstance(config, Mapping) else None
    if isinstance(processes, list) and len(processes) == 1 and isinstance(processes[0], Mapping):
        return processes[0]
    raise ConfigError(
        "the configuration has no single process under config.process",
        where=str(source.path),
        remedy="give a file with one training process",
    )


def _out(draft: Draft) -> None:
    folder = draft.take("training_folder", "config.training_folder", default="output")
    name = draft.take("config.name", "name", default="run")
    draft.recipe["out"] = f"{folder}/{name}"
    draft.pass_over(("device", "config.device", "config.log_dir"), "it changes no result")


def _adapter(draft: Draft, model: str) -> None:
    kind = str(draft.take("network.type", default="lora")).lower()
    names = ("lora", "lierla", "c3lier", "locon", "lorm")
    methods = dict.fromkeys(names, "lora") | {"dora": "dora", "lokr": "lokr", "loha": "loha"}
    draft.put_method("network.type", kind, methods)
    factor = draft.take("network.lokr_factor")
    if factor not in (None, -1):
        draft.put("adapter.factor", "network.lokr_factor", factor)
    draft.pass_over(("network.conv_alpha",), "convolutions have the alpha / rank of the other layers")
    only = draft.take("network.network_kwargs.only_if_contains")
    ignored = draft.take("network.network_kwargs.ignore_if_contains")
    if only:
        draft.recipe["adapter.targets"] = [rf"re:.*({'|'.join(re.escape(word) for word in only)}).*"]
    else:
        unet = base_models.is_unet(model) or "stable-diffusion-v1" in model or "xl" in model.lower()
        draft.put_targets(base_models.linear_layers(unet=unet))
    if ignored:
        draft.note(
            "network.network_kwargs.ignore_if_contains", ignored, "write the modules in adapter.targets"
        )


def _quantization(draft: Draft) -> None:
    quantize, format_name = draft.take("model.quantize"), draft.take("model.qtype", default="qfloat8")
    if quantize:
        draft.put("memory.quantize", "model.qtype", format_name)


def _timesteps(draft: Draft) -> None:
    kind = draft.take("train.timestep_type")
    if kind in _TIMESTEPS:
        draft.recipe["objective.timesteps"] = _TIMESTEPS[kind]
        if str(kind).endswith("shift"):
            draft.recipe["objective.shift"] = "resolution"
    elif kind is not None:
        draft.note("train.timestep_type", kind, "lorakit has no such distribution of timesteps")


def _moving_average(draft: Draft) -> None:
    used = draft.take("train.ema_config.use_ema")
    decay = draft.take("train.ema_config.ema_decay", default=0.99)
    if used:
        draft.recipe["train.ema_decay"] = float(decay)


def _datasets(draft: Draft, process: Mapping[str, Any]) -> None:
    """Read the datasets: one concept each; what they share and concepts lack becomes the recipe's own."""
    for number, dataset in enumerate(process.get("datasets") or []):
        values = draft.take_section(f"datasets.{number}")
        folder = values.pop("folder_path", None) or values.pop("dataset_path", None)
        if values.pop("is_reg", False):
            draft.recipe["class_images"] = folder
        elif folder is not None:
            repeats = int(values.pop("num_repeats", 1) or 1)
            concept: dict[str, Any] = {"folder": folder}
            concept |= {"repeats": repeats} if repeats != 1 else {}
            if dataset.get("trigger_word"):
                concept["trigger"] = values.pop("trigger_word")
            draft.concepts.append(concept)
        for name, value in values.items():
            draft.settings.setdefault(f"dataset.{name}", value)


def _samples(draft: Draft, process: Mapping[str, Any]) -> None:
    sample = process.get("sample") or {}
    lines = [{"prompt": text} for text in sample.get("prompts") or []] + list(sample.get("samples") or [])
    draft.take_section("sample.samples")
    draft.take("sample.prompts")
    shared = {
        ours: draft.take(f"sample.{name}")
        for ours, name in (("negative", "neg"), ("width", "width"), ("height", "height"), ("seeds", "seed"))
    }
    for number, line in enumerate(lines):
        prompt = {"id": f"{number + 1}", "prompt": line.get("prompt", "")}
        prompt |= {key: value for key, value in shared.items() if value not in (None, "")}
        images = [line[name] for name in sorted(line) if name.startswith("ctrl_img") and line[name]]
        if images:
            prompt["image"] = images if len(images) > 1 else images[0]
        draft.prompts.append(prompt)


def _slider(draft: Draft, process: Mapping[str, Any]) -> None:
    targets = (process.get("slider") or {}).get("targets") or []
    draft.take_section("slider.targets")
    if not targets:
        return
    first = targets[0]
    draft.recipe |= {
        "slider.target_prompt": first.get("target_class") or "a photo",
        "slider.positive_prompt": first.get("positive"),
        "slider.negative_prompt": first.get("negative"),
    }
    if not first.get("target_class"):
        draft.remarks["slider.target_prompt"] = "not in the file: the prompt that the slider acts on"
    for number, target in enumerate(targets[1:], 1):
        draft.note(f"slider.targets.{number}", target, "a slider of lorakit has one target")


def _only_text(draft: Draft, value: Any) -> None:
    if value is False:
        draft.recipe |= {"adapter.denoiser": False, "adapter.text_encoder": True}
