"""Settings of OneTrainer: a JSON file, with concepts in it or in a file of their own."""

from __future__ import annotations

import math
from typing import Any

from lorakit.config.recipe_import import base_models
from lorakit.config.recipe_import.draft import NO_FILE, Draft, Rule, Without, not_needed
from lorakit.config.recipe_import.source import Source
from lorakit.core.errors import ConfigError

_OWN = not_needed("read from the base model")
_PLANNER = not_needed("left to lorakit's planner, which fits the run into the memory")
_TIMESTEPS = {"UNIFORM": "uniform", "LOGIT_NORMAL": "logit_normal", "SIGMOID": "logit_normal"}
_WEIGHTINGS = {
    "CONSTANT": "none",
    "MIN_SNR_GAMMA": "min_snr",
    "DEBIASED_ESTIMATION": "debiased",
    "SIGMA": "sigma_sqrt",
}
_LAYER_PRESETS = ("attn-mlp", "attn-only", "blocks", "full", "custom", "")
_EXPORTS = {
    "COMFY_LORA": "comfyui",
    "KOHYA_LORA": "a1111",
    "DIFFUSERS_LORA": "diffusers",
    "LEGACY_LORA": "a1111",
}
RULES: dict[str, Rule] = {
    **dict.fromkeys(
        (
            "model_type",
            "vae.weight_dtype",
            "vae.model_name",
            "text_encoder.model_name",
            "text_encoder_4.model_name",
            "output_dtype",
            "force_v_prediction",
            "force_epsilon_prediction",
            "weight_dtype",
            "fallback_train_dtype",
            "text_encoder.weight_dtype",
            "text_encoder_2.weight_dtype",
            "text_encoder_3.weight_dtype",
            "text_encoder_4.weight_dtype",
            "lora_weight_dtype",
            "enable_autocast_cache",
        ),
        _OWN,
    ),
    **dict.fromkeys(
        (
            "offload_fraction",
            "layer_offload_fraction",
            "gradient_checkpointing",
            "enable_activation_offloading",
            "enable_async_offloading",
            "temp_device",
            "unconditional_transformer.weight_dtype",
        ),
        _PLANNER,
    ),
    **dict.fromkeys(
        ("transformer.model_name", "unet.model_name", "prior.model_name", "decoder.model_name"),
        Without("write a single file before the base model: base=FILE@FOLDER"),
    ),
    "training_method": not_needed(""),
    "layer_filter_regex": Without("see adapter.targets"),
    "backup_after": Without("see train.save_every"),
    "backup_after_unit": Without("see train.save_every"),
    "rolling_backup_count": "train.keep_optimizer_states",
    "sample_after_unit": Without("samples.every counts steps"),
    "save_every_unit": Without("train.save_every counts steps"),
    "sample_after": Without("samples.every counts steps"),
    "max_noising_strength": Without("lorakit trains all timesteps"),
    "min_noising_strength": Without("lorakit trains all timesteps"),
    "noising_weight": Without("see objective.logit_mean"),
    "noising_bias": Without("see objective.logit_mean"),
    "dataloader_threads": Without("lorakit does not need it"),
    "compile": lambda draft, setting, value: draft.recipe.setdefault("train.compile", "auto") and None,
    "cache_dir": Without("caches lie in LORAKIT_CACHE"),
    "debug_dir": Without("the run's folder has all files of a run"),
    "quantization.layer_filter": Without("all linear layers of the base model are quantized"),
    "quantization.layer_filter_preset": Without("all linear layers of the base model are quantized"),
    "lora_decompose": not_needed(""),
    "dropout_probability": Without("lorakit's adapters have no dropout"),
    "ema": Without("see train.ema_decay"),
}


def read(source: Source, draft: Draft) -> None:
    """Fill a draft from a configuration; ConfigError if it does not train an adapter or an embedding."""
    method = str(draft.settings.get("training_method", "LORA"))
    if method not in ("LORA", "EMBEDDING"):
        raise ConfigError(
            f"training_method {method} trains the whole network, which lorakit does not",
            where=str(source.path),
            remedy="give a configuration with training_method LORA or EMBEDDING",
        )
    model = str(draft.settings.get("model_type", ""))
    _out(draft)
    _adapter(draft, model, method)
    _optimizer(draft)
    _objective(draft)
    _quantization(draft)
    _text_encoders(draft, model)
    _average(draft)
    _concepts(source, draft)
    if draft.recipe.get("adapter.type") == "none":
        _embedding(draft)
    draft.take_section("optimizer_defaults")
    draft.settings.setdefault("epochs", 100)
    draft.apply(RULES)


def _out(draft: Draft) -> None:
    target = str(draft.take("output_model_destination", default="") or "runs/run")
    workspace = draft.take("workspace_dir")
    draft.recipe["out"] = str(workspace or target.removesuffix(".safetensors"))
    export = _EXPORTS.get(str(draft.take("output_model_format", default="")))
    if export:
        draft.recipe["export"] = [export]


def _adapter(draft: Draft, model: str, method: str) -> None:
    if method == "EMBEDDING":
        draft.recipe["adapter.type"] = "none"
        return
    kind = str(draft.take("peft_type", default="LORA"))
    draft.put_method("peft_type", kind, {"LORA": "lora", "LOHA": "loha", "LOKR": "lokr", "OFT_2": "oft"})
    if draft.take("lora_decompose"):
        draft.recipe["adapter.type"] = "dora"
    draft.settings.setdefault("lora_rank", 16)
    draft.settings.setdefault("lora_alpha", 1.0)
    preset, words = draft.take("layer_filter_preset"), draft.take("layer_filter", default="")
    if draft.take("layer_filter_regex"):
        patterns = [word.strip() for word in str(words).split(",") if word.strip()]
        draft.put_targets([f"re:.*{pattern.lstrip('^')}" for pattern in patterns])
    elif words and preset != "full":
        names = [word.strip().replace(".", r"\.") for word in str(words).split(",") if word.strip()]
        draft.put_targets([rf"re:.*({'|'.join(names)}).*"])
    else:
        draft.put_targets(base_models.linear_layers(unet=base_models.is_unet(model)))


def _optimizer(draft: Draft) -> None:
    own = draft.take_section("optimizer")
    name = own.pop("optimizer", None)
    if name is not None:
        draft.put("optimizer.name", "optimizer.optimizer", name)
    else:
        draft.recipe["optimizer.name"] = "adamw"
    beta = [own.pop(f"beta{number}", None) for number in (1, 2)]
    if all(isinstance(value, float) for value in beta):
        draft.recipe["optimizer.betas"] = beta
    if own.get("weight_decay") is not None:
        draft.put("optimizer.weight_decay", "optimizer.weight_decay", own.pop("weight_decay"))
    for setting, value in own.items():
        if not setting.startswith("__"):
            draft.note(f"optimizer.{setting}", value, "see optimizer.options")
    schedule = str(draft.take("learning_rate_scheduler", default="CONSTANT")).lower()
    draft.put(
        "optimizer.schedule", "learning_rate_scheduler", schedule.replace("_with_hard_restarts", "_restarts")
    )
    draft.settings.setdefault("learning_rate_warmup_steps", 200)


def _objective(draft: Draft) -> None:
    timesteps = draft.take("timestep_distribution")
    if timesteps in _TIMESTEPS:
        draft.recipe["objective.timesteps"] = _TIMESTEPS[timesteps]
    elif timesteps is not None:
        draft.note("timestep_distribution", timesteps, "lorakit has no such distribution of timesteps")
    shift = draft.take("timestep_shift")
    if draft.take("dynamic_timestep_shifting"):
        draft.recipe["objective.shift"] = "resolution"
    elif shift is not None:
        draft.recipe["objective.shift"] = float(shift)
    function, strength = draft.take("loss_weight_fn"), draft.take("loss_weight_strength")
    if function in _WEIGHTINGS:
        draft.recipe["objective.weighting"] = _WEIGHTINGS[function]
        if function == "MIN_SNR_GAMMA" and strength is not None:
            draft.recipe["objective.min_snr_gamma"] = float(strength)
    elif function is not None:
        draft.note("loss_weight_fn", function, "lorakit has no such loss weighting")
    if draft.take("masked_training"):
        draft.recipe["objective.masked_loss.unmasked_weight"] = float(
            draft.take("unmasked_weight", default=0.1)
        )
        area = draft.take("normalize_masked_area_loss", default=False)
        draft.recipe["objective.masked_loss.normalize_area"] = bool(area)
    huber = draft.take("huber_strength")
    if huber:
        draft.recipe["objective.huber.c"] = 0.1


def _quantization(draft: Draft) -> None:
    for part in ("transformer", "unet", "prior"):
        if (name := draft.take(f"{part}.weight_dtype")) is not None:
            draft.put("memory.quantize", f"{part}.weight_dtype", name)
        draft.pass_over((f"{part}.train",), "the denoiser gets an adapter; see adapter.denoiser")


def _text_encoders(draft: Draft, model: str) -> None:
    numbers = [("text_encoder", "text_encoder"), ("text_encoder_2", "text_encoder_2")]
    defaults = base_models.is_unet(model)
    trained = [ours for ours, name in numbers if defaults and draft.take(f"{name}.train", default=False)]
    for name in ("text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4"):
        if f"{name}.train" in draft.settings:
            value = draft.take(f"{name}.train")
            draft.note(f"{name}.train", value, "lorakit trains only the CLIP encoders of SD 1.5, 2 and XL")
    if trained:
        draft.recipe["adapter.text_encoder"] = trained if len(trained) == 1 else True


def _average(draft: Draft) -> None:
    mode = str(draft.take("ema", default="OFF"))
    decay = draft.take("ema_decay", default=0.999)
    draft.pass_over(("ema_update_step_interval",), "the moving average takes in every step")
    if mode != "OFF":
        draft.recipe["train.ema_decay"] = float(decay)


def _concepts(source: Source, draft: Draft) -> None:
    name = draft.take("concept_file_name")
    concepts = draft.take_section("concepts")
    entries = source.tree.get("concepts") if concepts else source.read_beside(name)
    if name and entries is None:
        draft.note("concept_file_name", name, NO_FILE)
    for number, entry in enumerate(entries if isinstance(entries, list) else []):
        if not isinstance(entry, dict) or not entry.get("path") or entry.get("enabled") is False:
            continue
        if str(entry.get("type", "")).upper() in ("PRIOR_PREDICTION", "VALIDATION"):
            draft.note(f"concepts.{number}", entry["path"], "see class_images and validate.folder")
            continue
        concept: dict[str, Any] = {"folder": entry["path"]}
        repeats = entry.get("balancing", 1)
        if str(entry.get("balancing_strategy", "REPEATS")) == "REPEATS" and repeats not in (1, 1.0):
            concept["repeats"] = max(1, math.ceil(float(repeats)))
        weight = entry.get("loss_weight", 1.0)
        concept |= {"weight": float(weight)} if weight != 1.0 else {}
        draft.concepts.append(concept)


def _embedding(draft: Draft) -> None:
    for ours, name in (("textual_inversion.token", "embedding.placeholder"),
                       ("textual_inversion.initializer_token", "embedding.initial_embedding_text"),
                       ("textual_inversion.num_vectors", "embedding.token_count")):  # fmt: skip
        draft.put(ours, name, draft.take(name))
    draft.recipe.setdefault("textual_inversion.token", "concept")
    draft.recipe.setdefault("textual_inversion.initializer_token", "object")
    draft.remarks["textual_inversion.token"] = "write the token of your captions and a word near to it"
    draft.put("textual_inversion.lr", "learning_rate", draft.take("learning_rate"))
