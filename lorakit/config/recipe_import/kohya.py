"""Settings of kohya's sd-scripts and of musubi-tuner: command lines, TOML files and dataset files."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from lorakit.config.recipe_import import base_models
from lorakit.config.recipe_import.draft import NO_FILE, Draft, Rule, Without, not_needed
from lorakit.config.recipe_import.source import Source

_OWN_PARTS = "lorakit takes all components from the base model"
_PLANNER = "left to lorakit's planner, which fits the run into the memory"
_METADATA = "exports carry lorakit's own metadata"
_SAMPLING = {
    "sigmoid": "logit_normal", "logit_normal": "logit_normal", "uniform": "uniform", "mode": "mode",
    "sigma": "uniform", "shift": "logit_normal", "flux_shift": "logit_normal", "qwen_shift": "logit_normal",
    "flux2_shift": "logit_normal", "logsnr": "logit_normal",
}  # fmt: skip
_BY_RESOLUTION = ("flux_shift", "qwen_shift", "flux2_shift")
RULES: dict[str, Rule] = {
    **dict.fromkeys(
        ("clip_l", "clip_g", "t5xxl", "ae", "t5", "clip", "text_encoder", "text_encoder1", "text_encoder2",
         "vae", "gemma2", "qwen3", "byt5", "mistral3", "text_encoder_dtype", "vae_dtype"),
        not_needed(_OWN_PARTS),
    ),
    **dict.fromkeys(
        ("blocks_to_swap", "split_attn", "split_mode", "vae_tiling", "vae_chunk_size", "fp8_t5", "fp8_vl",
         "fp8_llm", "vae_spatial_tile_sample_min_size", "cpu_offload_checkpointing", "highvram", "lowram",
         "use_pinned_memory_for_block_swap", "gradient_checkpointing_cpu_offload", "vae_batch_size",
         "fp8_text_encoder", "vae_reflection_padding", "img_in_txt_in_offloading"),
        not_needed(_PLANNER),
    ),
    **dict.fromkeys(
        ("training_comment", "metadata_title", "metadata_author", "metadata_description", "metadata_license",
         "metadata_tags", "no_metadata", "save_precision", "weighting_scheme_note"),
        not_needed(_METADATA),
    ),
    "ip_noise_gamma": Without("lorakit adds no noise to the noisy latents"),
    "multires_noise_iterations": Without("lorakit has no pyramid noise; see objective.noise_offset"),
    "multires_noise_discount": Without("lorakit has no pyramid noise; see objective.noise_offset"),
    "adaptive_noise_scale": Without("objective.noise_offset is constant"),
    "zero_terminal_snr": Without("lorakit trains with the base model's own noise schedule"),
    "scale_v_pred_loss_like_noise_pred": Without("see objective.weighting"),
    "guidance_scale": Without("networks with a guidance input are trained with guidance 1"),
    "model_prediction_type": not_needed("read from the base model"),
    "apply_t5_attn_mask": Without("masks of text are used as the pipeline of the base model does"),
    "apply_lg_attn_mask": Without("masks of text are used as the pipeline of the base model does"),
    "max_token_length": Without("captions have the length that the base model's pipeline encodes"),
    "face_crop_aug_range": Without("crops are part of the dataset: lorakit data bucket --help"),
    "flip_aug": Without("lorakit does not mirror images"),
    "color_aug": Without("lorakit does not change colors"),
    "random_crop": Without("crops are part of the dataset: lorakit data bucket --help"),
    "network_dropout": Without("lorakit's adapters have no dropout"),
    "rank_dropout": Without("lorakit's adapters have no dropout"),
    "module_dropout": Without("lorakit's adapters have no dropout"),
    "scale_weight_norms": Without("see optimizer.weight_decay and optimizer.max_grad_norm"),
    "clip_skip": Without("the text encoders' layer is that of the base model's pipeline"),
    "min_timestep": Without("lorakit trains all timesteps; see objective.timesteps"),
    "max_timestep": Without("lorakit trains all timesteps; see objective.timesteps"),
    "task": not_needed("read from the base model"),
    "log_config": Without("the run's folder has the recipe and all settings"),
    "network_train_text_encoder_only": lambda draft, setting, value: _only_text(draft, value),
}  # fmt: skip


def read(source: Source, draft: Draft) -> None:
    """Fill a draft from the settings of sd-scripts or musubi-tuner."""
    module = str(draft.take("network_module", default=""))
    model = model_word(source.script, module, draft)
    _base(draft, model)
    _out(draft)
    _adapter(draft, module, model)
    _optimizer(draft)
    _timesteps(draft)
    _text_encoders(draft, model)
    _loss(draft)
    _dataset(source, draft)
    if not draft.settings.keys() & {"max_train_steps", "max_train_epochs"}:
        draft.settings["max_train_steps"] = 1600  # their default
    draft.apply(RULES)


def model_word(script: str, module: str, draft: Draft) -> str:
    """Return the word for the base model: from the script, the network module or the settings."""
    task = str(draft.settings.get("task", "")).lower()
    if chroma := draft.settings.get("model_type"):
        return str(chroma)
    name = module.rpartition(".")[2].removeprefix("lora_")
    if name in ("", "lora", "kohya", "oft", "dylora", "loha", "lokr"):
        name = re.sub(r"_?(train_network|train|train_db)\.py$", "", script).replace("train_network.py", "")
    if name == "wan":
        name = "wan22" if "a14b" in task else "wan"
        name += "i2v" if "i2v" in task else ""
    version = str(draft.settings.get("model_version", ""))
    return f"{name}{version}" if "klein" in version or "edit" in version else name or "sd1"


def _base(draft: Draft, model: str) -> None:
    setting = next((n for n in ("pretrained_model_name_or_path", "dit") if n in draft.settings), None)
    if setting is None:
        return
    base = draft.take(setting)
    known = base_models.hub_id(model)
    if base_models.is_unet(model) or known is None or PurePath(str(base)).suffix == "":
        draft.recipe["base"] = base
        return
    draft.recipe["base"] = f"{base}@{known}"
    draft.remarks["base"] = base_models.OTHER_PARTS.format(known)


def _out(draft: Draft) -> None:
    folder, name = draft.take("output_dir"), draft.take("output_name")
    if folder or name:
        draft.recipe["out"] = "/".join(str(part).rstrip("/\\") for part in (folder, name) if part)


def _adapter(draft: Draft, module: str, model: str) -> None:
    arguments = network_arguments(draft.take("network_args", default=[]))
    name = module.rpartition(".")[2]
    kind = str(arguments.pop("algo", name)).lower()
    if str(arguments.pop("dora_wd", "")).lower() == "true":
        kind = "dora"
    is_lora = kind.startswith("lora") or kind in ("", "kohya", "locon", "dylora")
    methods = {"lokr": "lokr", "loha": "loha", "dora": "dora", "oft": "oft", "diag-oft": "oft"}
    draft.put_method("network_module", kind, methods | ({kind: "lora"} if is_lora else {}))
    for ours, setting in (("adapter.conv_rank", "conv_dim"), ("adapter.factor", "factor"),
                          ("optimizer.loraplus_lr_ratio", "loraplus_lr_ratio")):  # fmt: skip
        if setting in arguments:
            draft.put(ours, f"network_args.{setting}", arguments.pop(setting))
    draft.settings |= {f"network_args.{key}": value for key, value in arguments.items()}
    if draft.recipe["adapter.type"] != "oft":
        unet = base_models.is_unet(model)
        draft.put_targets(base_models.linear_layers(unet=unet))
    if "network_alpha" not in draft.settings:
        draft.recipe["adapter.alpha"] = 1
        draft.remarks["adapter.alpha"] = "network_alpha is not in the file; 1 is its default there"


def network_arguments(arguments: Any) -> dict[str, Any]:
    """Return arguments such as `["conv_dim=4", "algo=lokr"]` by name."""
    words = [arguments] if isinstance(arguments, str) else list(arguments or [])
    return {name: value for name, _, value in (str(word).partition("=") for word in words)}


def _optimizer(draft: Draft) -> None:
    for name, value in network_arguments(draft.take("optimizer_args", default=[])).items():
        if name == "weight_decay":
            draft.put("optimizer.weight_decay", "optimizer_args.weight_decay", value)
        elif name == "betas":
            draft.recipe["optimizer.betas"] = [float(n) for n in re.findall(r"[\d.]+", str(value))][:2]
        else:
            draft.recipe.setdefault("optimizer.options", {})[name] = _literal(value)
    unet_rate = draft.take("unet_lr")
    rate = draft.take("learning_rate")
    if unet_rate is not None or rate is not None:
        draft.put("optimizer.lr", "learning_rate", unet_rate if unet_rate is not None else rate)
    draft.settings.setdefault("optimizer_type", "AdamW")
    draft.settings.setdefault("lr_scheduler", "constant")


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False}.get(text.lower(), text)


def _timesteps(draft: Draft) -> None:
    sampling = str(draft.take("timestep_sampling", default="") or "").lower()
    scheme = str(draft.take("weighting_scheme", default="") or "").lower()
    shift = draft.take("discrete_flow_shift", "training_shift")
    if scheme in ("logit_normal", "mode") and sampling in ("", "sigma"):
        sampling = scheme
    elif scheme in ("sigma_sqrt", "cosmap"):
        draft.recipe["objective.weighting"] = scheme
    if sampling in _SAMPLING:
        draft.recipe["objective.timesteps"] = _SAMPLING[sampling]
    elif sampling:
        draft.note("timestep_sampling", sampling, "lorakit has no such distribution of timesteps")
    if sampling in _BY_RESOLUTION:
        draft.recipe["objective.shift"] = "resolution"
    elif shift is not None and sampling in ("shift", "", "sigma", "logit_normal", "mode"):
        draft.recipe["objective.shift"] = float(shift)
    elif shift is not None:
        draft.note("discrete_flow_shift", shift, f"{sampling} does not use it")
    scale = draft.take("sigmoid_scale")
    if scale is not None and draft.recipe.get("objective.timesteps") == "logit_normal":
        draft.recipe["objective.logit_std"] = float(scale)
    for name, key in (("logit_mean", "logit_mean"), ("logit_std", "logit_std"), ("mode_scale", "mode_scale")):
        value = draft.take(name)
        needed = "mode" if name == "mode_scale" else "logit_normal"
        if value is not None and sampling == needed:
            draft.put(f"objective.{key}", name, value)


def _text_encoders(draft: Draft, model: str) -> None:
    rates = draft.take("text_encoder_lr")
    only_denoiser = draft.take("network_train_unet_only")
    if not (base_models.is_unet(model)):
        if rates:
            draft.note("text_encoder_lr", rates, "lorakit trains only the text encoders of SD 1.5, 2 and XL")
        return
    if only_denoiser or draft.settings.get("cache_text_encoder_outputs"):
        return
    draft.recipe["adapter.text_encoder"] = True
    if rates is not None:
        rate = rates[0] if isinstance(rates, list) else rates
        draft.put("adapter.text_encoder_lr", "text_encoder_lr", rate)


def _only_text(draft: Draft, value: Any) -> None:
    if value:
        draft.recipe |= {"adapter.text_encoder": True, "adapter.denoiser": False}


def _loss(draft: Draft) -> None:
    loss = str(draft.take("loss_type", default="l2"))
    c, schedule = draft.take("huber_c"), draft.take("huber_schedule")
    draft.pass_over(("huber_scale",), "objective.huber has c and its schedule")
    if loss in ("huber", "smooth_l1"):
        draft.recipe["objective.huber.c"] = float(c) if c is not None else 0.1
        draft.recipe["objective.huber.schedule"] = schedule or "snr"
    elif loss != "l2":
        draft.note("loss_type", loss, "lorakit has the squared error and objective.huber")
    gamma = draft.take("min_snr_gamma", "snr_gamma")
    if gamma:
        draft.recipe |= {"objective.weighting": "min_snr", "objective.min_snr_gamma": float(gamma)}
    if draft.take("debiased_estimation_loss"):
        draft.recipe["objective.weighting"] = "debiased"


def _dataset(source: Source, draft: Draft) -> None:
    """Read `train_data_dir`, or the file of `dataset_config`, or datasets in the configuration itself."""
    name = draft.take("dataset_config")
    tree = source.read_beside(name) if name else source.tree
    if name and tree is None:
        draft.note("dataset_config", name, NO_FILE)
        return
    for section in ("general", "datasets"):
        draft.take_section(section)
    if isinstance(tree, Mapping):
        _configured_datasets(draft, tree)
    if regularization := draft.take("reg_data_dir"):
        draft.recipe["class_images"] = regularization


def _configured_datasets(draft: Draft, tree: Mapping[str, Any]) -> None:
    general = dict(tree.get("general") or {})
    for dataset in tree.get("datasets") or []:
        shared = general | {key: value for key, value in dataset.items() if key != "subsets"}
        for subset in dataset.get("subsets") or [{}]:
            _subset(draft, shared | subset)


def _subset(draft: Draft, values: dict[str, Any]) -> None:
    names = ("image_dir", "image_directory", "video_directory")
    folder = next((values.pop(name) for name in names if values.get(name)), None)
    for name in ("cache_directory", "enable_bucket", "target_frames"):
        if name == "target_frames" and values.get(name):
            draft.recipe["frames"] = max(values[name])
        values.pop(name, None)
    repeats = int(values.pop("num_repeats", 1) or 1)
    if folder is None:
        for name, value in values.items():
            draft.settings.setdefault(f"dataset.{name}", value)
    elif values.pop("is_reg", False):
        draft.recipe["class_images"] = folder
    else:
        concept = {"folder": folder} | ({"repeats": repeats} if repeats != 1 else {})
        if words := values.pop("class_tokens", None):
            concept["captions"] = words
        draft.concepts.append(concept)
    for ours, name in (("resolution", "resolution"), ("train.batch_size", "batch_size")):
        if name in values:
            draft.put(ours, f"dataset.{name}", values.pop(name))
    for name, value in values.items():
        draft.settings.setdefault(f"dataset.{name}", value)
