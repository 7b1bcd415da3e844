"""Settings of SimpleTuner: a JSON file, with data back ends and LyCORIS settings in files of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lorakit.config.recipe_import import base_models
from lorakit.config.recipe_import.draft import NO_FILE, Draft, Rule, Without, not_needed
from lorakit.config.recipe_import.source import Source
from lorakit.core.errors import ConfigError

_PLANNER = not_needed("left to lorakit's planner, which fits the run into the memory")
_OWN_FILES = not_needed("lorakit keeps caches and checks files by itself")
_HUB = Without("adapters are published by a command of their own")
# Flavours that are base models of their own, by family and flavour.
_FLAVOURS = {
    "flux kontext": "fluxkontext", "flux schnell": "fluxschnell", "flux fill": "fluxfill",
    "flux2 klein-4b": "flux2klein", "flux2 klein-9b": "flux2klein9b", "sd3 large": "sd35large",
    "qwen_image edit-v1": "qwenimageedit", "qwen_image edit-v2": "qwenimageeditplus",
}  # fmt: skip
RULES: dict[str, Rule] = {
    **dict.fromkeys(
        (
            "musubi_blocks_to_swap",
            "ramtorch",
            "ramtorch_disable_extensions",
            "ramtorch_transformer_percent",
            "ramtorch_text_encoder",
            "ramtorch_target_modules",
            "ramtorch_disable_sync_hooks",
            "quantize_via",
            "offload_during_startup",
            "gradient_checkpointing",
            "gradient_checkpointing_interval",
            "ema_device",
            "gradient_checkpointing_backend",
            "gradient_checkpointing_segment_stride",
            "vae_enable_tiling",
            "vae_enable_slicing",
            "vae_batch_size",
            "text_encoder_batch_size",
            "vae_enable_temporal_roll",
            "vae_enable_patch_conv",
            "fuse_qkv_projections",
            "ema_cpu_only",
            "ema_foreach_disable",
        ),
        _PLANNER,
    ),
    **dict.fromkeys(
        (
            "disable_bucket_pruning",
            "minimum_image_size",
            "skip_file_discovery",
            "compress_disk_cache",
            "delete_problematic_images",
            "delete_unwanted_images",
            "disable_benchmark",
            "strict_epoch_limit",
            "aspect_bucket_rounding",
            "aspect_bucket_alignment",
            "resolution_type",
            "metadata_update_interval",
            "preserve_data_backend_cache",
            "override_dataset_config",
            "vae_cache_ondemand",
            "vae_cache_disable",
            "text_cache_disable",
            "text_cache_ondemand",
            "allow_dataset_oversubscription",
            "write_batch_size",
        ),
        _OWN_FILES,
    ),
    **dict.fromkeys(
        (
            "hub_model_id",
            "push_to_hub",
            "push_checkpoints_to_hub",
            "push_to_hub_background",
            "model_card_note",
            "model_card_safe_for_work",
            "model_card_private",
        ),
        _HUB,
    ),
    "tracker_project_name": lambda draft, setting, value: _tracker(draft, "project", value),
    "tracker_run_name": lambda draft, setting, value: _tracker(draft, "run_name", value),
    "checkpoint_step_interval": "train.save_every",
    "checkpointing_steps": "train.save_every",
    "validation_step_interval": "samples.every",
    "validation_num_inference_steps": "samples.num_inference_steps",
    "validation_guidance": "samples.guidance_scale",
    "framerate": Without("videos are used at the frame rate of the base model"),
    "model_flavour": not_needed(""),
    "model_type": not_needed(""),
    "validation_torch_compile": Without("samples are generated without compilation"),
    "dynamo_backend": Without("train.compile is automatic"),
    "dynamo_mode": Without("train.compile and train.cuda_graph are automatic"),
    "dynamo_use_regional_compilation": Without("repeated blocks are compiled: train.compile"),
    "grad_clip_method": Without("gradients are clipped by their norm"),
    "flow_schedule_auto_shift": lambda draft, setting, value: _auto_shift(draft, value),
    "adam_weight_decay": "optimizer.weight_decay",
    "optimizer_config": lambda draft, setting, value: _options(draft, value),
    "num_processes": Without("write it on the command line: lorakit train RECIPE --num-processes N"),
    "num_train_epochs": Without("lorakit counts steps: train.steps"),
    "loss_type": lambda draft, setting, value: _loss(draft, value),
    "lora_format": lambda draft, setting, value: _export(draft, value),
    "num_eval_images": Without("see validate.fraction"),
    "eval_steps_interval": "validate.every",
    "validation_disable_unconditional": not_needed("it changes no result"),
    "validation_num_video_frames": Without("samples have `frames` frames"),
    "validation_lycoris_strength": Without("samples have the adapter at strength 1"),
    "validation_adapter_strength": Without("samples have the adapter at strength 1"),
    "validation_steps": Without("samples are generated every samples.every steps"),
    "ema_update_interval": Without("the moving average takes in every step"),
    "ema_validation": Without("samples and validation have the moving average"),
    "trust_remote_code": Without("lorakit runs no code of models"),
    "evaluation_type": Without("lorakit eval run RUN measures after the training"),
}


def read(source: Source, draft: Draft) -> None:
    """Fill a draft from a configuration; ConfigError if it does not train an adapter."""
    draft.settings = {name.removeprefix("config."): value for name, value in draft.settings.items()}
    draft.take_section("_metadata")
    if str(draft.settings.get("model_type", "lora")) != "lora":
        raise ConfigError(
            f"model_type {draft.settings['model_type']} trains the whole network, which lorakit does not",
            where=str(source.path),
            remedy="give a configuration with model_type lora",
        )
    family = str(draft.take("model_family", default=""))
    flavour = str(draft.settings.get("model_flavour", ""))
    _base(draft, family, flavour)
    _adapter(source, draft, family)
    if not draft.settings.get("max_train_steps"):
        draft.take("max_train_steps")
    elif not draft.settings.get("num_train_epochs"):
        draft.take("num_train_epochs")
    _average(draft)
    if draft.settings.get("validation_step_interval"):
        draft.pass_over(("validation_steps",), "validation_step_interval is its newer name")
    _samples(source, draft)
    _betas(draft)
    _data(source, draft)
    draft.apply(RULES)


def _base(draft: Draft, family: str, flavour: str) -> None:
    base = draft.take("pretrained_model_name_or_path")
    if base:
        draft.recipe["base"] = base
        return
    word = _FLAVOURS.get(f"{family} {flavour}", family)
    if known := base_models.hub_id(word):
        draft.recipe["base"] = known
        draft.remarks["base"] = f"of model_family {family} {flavour}".rstrip()
    else:
        draft.note("model_family", family, "name a folder or hub id of this model in `base`")


def _adapter(source: Source, draft: Draft, family: str) -> None:
    kind = draft.take("lora_type", default="standard")
    name = draft.take("lycoris_config")
    if kind != "lycoris":
        draft.settings.setdefault("lora_rank", 16)
        rank = draft.settings["lora_rank"]
        draft.settings.setdefault("lora_alpha", rank)
        return
    lycoris = source.read_beside(name)
    if not isinstance(lycoris, Mapping):
        draft.note("lycoris_config", name, "this file is not there; write adapter.type, rank and factor")
        return
    algorithm = str(lycoris.get("algo", "lora"))
    methods = {
        "lora": "lora",
        "locon": "lora",
        "loha": "loha",
        "lokr": "lokr",
        "oft": "oft",
        "diag-oft": "oft",
    }
    draft.put_method("lycoris_config.algo", algorithm, methods)
    rank, factor = lycoris.get("linear_dim"), lycoris.get("factor")
    full = lycoris.get("full_matrix") or (isinstance(rank, int) and rank >= 10000)
    draft.recipe["adapter.rank"] = 128 if full else rank or 16
    if full:
        draft.remarks["adapter.rank"] = "there both factors are full matrices; this is a low-rank one"
    if factor and algorithm == "lokr":
        draft.recipe["adapter.factor"] = factor
    draft.recipe["adapter.alpha"] = draft.recipe["adapter.rank"] if full else lycoris.get("linear_alpha", 1)
    draft.pass_over(("lora_rank", "lora_alpha"), "LyCORIS has its own in lycoris_config")
    for key in ("apply_preset", "multiplier", "bypass_mode", "use_scalar"):
        if lycoris.get(key) not in (None, False, 1.0):
            draft.note(f"lycoris_config.{key}", lycoris[key], "see adapter.targets and adapter.rank_pattern")


def _average(draft: Draft) -> None:
    decay = draft.take("ema_decay", default=0.999)
    if draft.take("use_ema"):
        draft.recipe["train.ema_decay"] = float(decay)


def _samples(source: Source, draft: Draft) -> None:
    library = source.read_beside(draft.take("user_prompt_library"))
    texts = list(library.values()) if isinstance(library, Mapping) else []
    first = draft.take("validation_prompt")
    prompts = ([first] if first else []) + texts
    negative, seed = draft.take("validation_negative_prompt"), draft.take("validation_seed")
    size = str(draft.take("validation_resolution", default="")).split("x")
    for number, text in enumerate(prompts):
        prompt: dict[str, Any] = {
            "id": f"{number + 1}",
            "prompt": text["prompt"] if isinstance(text, dict) else text,
        }
        prompt |= {"negative": negative} if negative else {}
        prompt |= {"seeds": seed} if isinstance(seed, int) else {}
        if len(size) == 2 and all(part.isdigit() for part in size):
            prompt |= {"width": int(size[0]), "height": int(size[1])}
        draft.prompts.append(prompt)


def _betas(draft: Draft) -> None:
    betas = [draft.take(f"optimizer_beta{number}", f"adam_beta{number}") for number in (1, 2)]
    if all(isinstance(beta, float) for beta in betas):
        draft.recipe["optimizer.betas"] = betas


def _options(draft: Draft, value: Any) -> None:
    for name, _, number in (part.partition("=") for part in str(value).split(",")):
        key = "optimizer.weight_decay" if name.strip() == "weight_decay" else None
        if key:
            draft.put(key, "optimizer_config", number)
        else:
            draft.recipe.setdefault("optimizer.options", {})[name.strip()] = float(number)


def _loss(draft: Draft, value: Any) -> None:
    if value in ("huber", "smooth_l1"):
        draft.recipe["objective.huber.c"] = float(draft.take("huber_c", default=0.1))
        draft.recipe["objective.huber.schedule"] = draft.take("huber_schedule", default="snr")
    elif value != "l2":
        draft.note("loss_type", value, "lorakit has the squared error and objective.huber")


def _export(draft: Draft, value: Any) -> None:
    if value in ("comfyui", "diffusers"):
        draft.recipe["export"] = [value]


def _tracker(draft: Draft, key: str, value: Any) -> None:
    if draft.settings.get("report_to", draft.recipe.get("tracker", "none")) not in ("none", None):
        draft.recipe[f"tracker.{key}"] = value
    else:
        draft.off.append(f"tracker_{key}")


def _auto_shift(draft: Draft, value: Any) -> None:
    if value:
        draft.recipe["objective.shift"] = "resolution"


def _data(source: Source, draft: Draft) -> None:
    name = draft.take("data_backend_config")
    entries = source.read_beside(name)
    if name and not isinstance(entries, list):
        draft.note("data_backend_config", name, NO_FILE)
        return
    for entry in entries or []:
        if entry.get("dataset_type", "image") in ("text_embeds", "image_embeds") or entry.get("disabled"):
            continue
        folder = entry.get("instance_data_dir")
        label = f"data_backend_config {entry.get('id')}"
        if not folder:
            where = entry.get("dataset_name") or (entry.get("huggingface") or {}).get("dataset_name")
            draft.note(label, where, "download the dataset into a folder, and give it to `dataset`")
            continue
        concept: dict[str, Any] = {"folder": folder}
        if repeats := entry.get("repeats"):
            concept["repeats"] = int(repeats) + 1  # SimpleTuner counts the repeats after the first use
        if entry.get("caption_strategy") == "instanceprompt" and entry.get("instance_prompt"):
            concept["captions"] = entry["instance_prompt"]
        draft.concepts.append(concept)
