"""Settings of diffusion-pipe: a TOML file, with the dataset in a file of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lorakit.config.recipe_import import base_models
from lorakit.config.recipe_import.draft import NO_FILE, Draft, Rule, Without, not_needed
from lorakit.config.recipe_import.source import Source
from lorakit.core.errors import ConfigError

_PLANNER = not_needed("left to lorakit's planner, which fits the run into the memory")
_OWN = not_needed("lorakit takes all components from the base model")
RULES: dict[str, Rule] = {
    **dict.fromkeys(
        (
            "activation_checkpointing",
            "blocks_to_swap",
            "pipeline_stages",
            "partition_method",
            "partition_split",
            "reentrant_activation_checkpointing",
            "caching_batch_size",
            "eval_micro_batch_size_per_gpu",
            "eval_gradient_accumulation_steps",
            "image_micro_batch_size_per_gpu",
            "compile",
            "offload_dit",
        ),
        _PLANNER,
    ),
    **dict.fromkeys(
        (
            "vae_path",
            "llm_path",
            "clip_path",
            "t5_path",
            "text_encoder_path",
            "byt5_path",
            "llama3_path",
            "llama3_4bit",
            "text_encoders",
            "qwen_path",
            "single_file_path",
            "max_llama3_sequence_length",
        ),
        _OWN,
    ),
    "save_dtype": Without("see lorakit export"),
    "save_every_n_epochs": Without("train.save_every counts steps"),
    "checkpoint_every_n_minutes": Without("train.save_every counts steps"),
    "checkpoint_every_n_epochs": Without("train.save_every counts steps"),
    "eval_every_n_epochs": Without("see validate.fraction and validate.every"),
    "eval_before_first_step": Without("see validate.fraction and validate.every"),
    "eval_datasets": Without("see validate.folder"),
    "steps_per_print": Without("metrics.jsonl has every step"),
    "video_clip_mode": Without("see `frames`"),
    "num_ar_buckets": Without("images are always sorted into buckets: lorakit data bucket --help"),
    "min_ar": Without("images are always sorted into buckets: lorakit data bucket --help"),
    "max_ar": Without("images are always sorted into buckets: lorakit data bucket --help"),
    "ar_buckets": Without("images are always sorted into buckets: lorakit data bucket --help"),
    "enable_ar_bucket": Without("images are always sorted into buckets: lorakit data bucket --help"),
    "control_path": Without("the source lies beside each image: see examples/edit-pairs.md"),
    "mask_path": Without("masks lie beside the images: see examples/data.md"),
    "flux_shift": lambda draft, setting, value: _shift(draft, value),
    "shift": "objective.shift",
    "adapter.dtype": Without("the adapter computes in train.precision"),
    "dtype": "train.precision",
    "guidance": Without("networks with a guidance input are trained with guidance 1"),
    "init_from_existing": "init_from",
    "force_constant_lr": Without("see optimizer.schedule"),
    "bypass_guidance_embedding": Without("networks with a guidance input are trained with guidance 1"),
    "wandb_api_key": Without("the tracker's own environment variable"),
    "eps": Without("see optimizer.options"),
    "type": not_needed(""),
}


def read(source: Source, draft: Draft) -> None:
    """Fill a draft from a configuration; ConfigError if it trains no adapter."""
    if not any(name.startswith("adapter.") for name in draft.settings):
        raise ConfigError(
            "without a section [adapter] it trains the whole network, which lorakit does not",
            where=str(source.path),
            remedy="give a configuration with [adapter]",
        )
    model = str(draft.take("model.type", default=""))
    _base(draft, model)
    draft.recipe["adapter.type"] = "lora"
    if (kind := draft.take("adapter.type", default="lora")) != "lora":
        draft.put("adapter.type", "adapter.type", kind)
    rank = draft.take("adapter.rank", default=16)
    draft.recipe |= {"adapter.rank": rank, "adapter.alpha": draft.take("adapter.alpha", default=rank)}
    draft.put_targets(base_models.linear_layers(unet=base_models.is_unet(model)))
    _optimizer(draft)
    _monitoring(draft)
    if (name := draft.take("model.transformer_dtype", "model.diffusion_model_dtype")) is not None:
        draft.put("memory.quantize", "model.transformer_dtype", name)
    method = draft.take("model.timestep_sample_method")
    if method is not None:
        draft.recipe["objective.timesteps"] = "logit_normal" if method == "logit_normal" else "uniform"
    if (scale := draft.take("model.sigmoid_scale")) is not None and method == "logit_normal":
        draft.recipe["objective.logit_std"] = float(scale)
    _dataset(source, draft)
    draft.apply(RULES)


def _base(draft: Draft, model: str) -> None:
    names = ("model.diffusers_path", "model.ckpt_path", "model.checkpoint_path", "model.transformer_path")
    setting = next((name for name in names if name in draft.settings), None)
    known = base_models.hub_id(model)
    path = draft.take(setting) if setting else None
    draft.pass_over(names[:-1], f"the base model is {setting}")
    if path and str(path).endswith(".safetensors") and known and setting == "model.transformer_path":
        draft.recipe["base"] = f"{path}@{known}"
        draft.remarks["base"] = base_models.OTHER_PARTS.format(known)
    elif path and setting != "model.ckpt_path":
        draft.recipe["base"] = path
    elif known:
        draft.recipe["base"] = known
        draft.remarks["base"] = f"of model type {model}: {path} is not in the layout of diffusers"


def _optimizer(draft: Draft) -> None:
    options = draft.take_section("optimizer")
    draft.put("optimizer.name", "optimizer.type", options.pop("type", "adamw"))
    for ours, name in (("optimizer.lr", "lr"), ("optimizer.weight_decay", "weight_decay")):
        draft.put(ours, f"optimizer.{name}", options.pop(name, None))
    betas = options.pop("betas", None)
    if isinstance(betas, list) and len(betas) >= 2:
        draft.recipe["optimizer.betas"] = [float(beta) for beta in betas[:2]]
    for name, value in options.items():
        draft.note(f"optimizer.{name}", value, "see optimizer.options")
    if (schedule := draft.take("lr_scheduler")) is not None:
        draft.put("optimizer.schedule", "lr_scheduler", schedule)


def _monitoring(draft: Draft) -> None:
    values = draft.take_section("monitoring")
    if values.get("enable_wandb"):
        draft.recipe["tracker.name"] = "wandb"
        for ours, name in (("project", "wandb_tracker_name"), ("run_name", "wandb_run_name")):
            draft.put(f"tracker.{ours}", f"monitoring.{name}", values.get(name))


def _shift(draft: Draft, value: Any) -> None:
    if value:
        draft.recipe["objective.shift"] = "resolution"


def _dataset(source: Source, draft: Draft) -> None:
    name = draft.take("dataset")
    tree = source.read_beside(name)
    if tree is None:
        draft.note("dataset", name, NO_FILE)
        return
    frames = tree.get("frame_buckets") or [1]
    if max(frames) > 1:
        draft.recipe["frames"] = max(frames)
    for directory in tree.get("directory") or []:
        concept: dict[str, Any] = {"folder": directory.get("path")}
        repeats = int(directory.get("num_repeats", tree.get("num_repeats", 1)) or 1)
        draft.concepts.append(concept | ({"repeats": repeats} if repeats != 1 else {}))
        _directory_settings(draft, directory)
    if resolutions := tree.get("resolutions"):
        draft.put("resolution", "dataset.resolutions", resolutions)
    rest = {key: value for key, value in tree.items()
            if key not in ("directory", "resolutions", "frame_buckets", "num_repeats")}  # fmt: skip
    draft.settings |= {f"dataset.{key}": value for key, value in rest.items()}


def _directory_settings(draft: Draft, directory: Mapping[str, Any]) -> None:
    for name, value in directory.items():
        if name not in ("path", "num_repeats", "resolutions", "frame_buckets"):
            draft.settings[f"dataset.directory.{name}"] = value
