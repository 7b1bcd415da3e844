"""The recipe key that an unknown key was probably meant to be."""

from __future__ import annotations

from lorakit.core.nearest import nearest_name

OTHER_NAMES = {
    "base_model": "base",
    "model": "base",
    "model_name_or_path": "base",
    "pretrained_model_name_or_path": "base",
    "instance_data_dir": "dataset",
    "train_data_dir": "dataset",
    "data": "dataset",
    "class_data_dir": "class_images",
    "reg_data_dir": "class_images",
    "output_dir": "out",
    "output": "out",
    "network_weights": "init_from",
    "size": "resolution",
    "num_frames": "frames",
    "trigger_word": "trigger",
    "instance_token": "trigger",
    "network_module": "adapter.type",
    "lora_rank": "adapter.rank",
    "network_dim": "adapter.rank",
    "network_rank": "adapter.rank",
    "dim": "adapter.rank",
    "r": "adapter.rank",
    "lora_alpha": "adapter.alpha",
    "network_alpha": "adapter.alpha",
    "target_modules": "adapter.targets",
    "conv_dim": "adapter.conv_rank",
    "train_text_encoder": "adapter.text_encoder",
    "placeholder_token": "textual_inversion.token",
    "optimizer_type": "optimizer.name",
    "learning_rate": "optimizer.lr",
    "unet_lr": "optimizer.lr",
    "lr": "optimizer.lr",
    "lr_scheduler": "optimizer.schedule",
    "lr_scheduler_type": "optimizer.schedule",
    "scheduler": "optimizer.schedule",
    "lr_warmup_steps": "optimizer.warmup",
    "warmup_steps": "optimizer.warmup",
    "clip_grad_norm": "optimizer.max_grad_norm",
    "gradient_clipping": "optimizer.max_grad_norm",
    "max_steps": "train.steps",
    "max_train_steps": "train.steps",
    "epoch": "train.steps",
    "epochs": "train.steps",
    "max_train_epochs": "train.steps",
    "num_epochs": "train.steps",
    "num_train_epochs": "train.steps",
    "batch": "train.batch_size",
    "train_batch_size": "train.batch_size",
    "per_device_train_batch_size": "train.batch_size",
    "gradient_accumulation": "train.accumulate",
    "gradient_accumulation_steps": "train.accumulate",
    "save_every_n_steps": "train.save_every",
    "save_steps": "train.save_every",
    "checkpointing_steps": "train.save_every",
    "checkpoints_total_limit": "train.keep_checkpoints",
    "save_total_limit": "train.keep_checkpoints",
    "mixed_precision": "train.precision",
    "dtype": "train.precision",
    "weighting_scheme": "objective.weighting",
    "timestep_sampling": "objective.timesteps",
    "snr_gamma": "objective.min_snr_gamma",
    "caption_dropout_rate": "objective.caption_dropout",
    "checkpoint": "memory.gradient_checkpointing",
    "sample_prompts": "samples.prompts",
    "validation_prompt": "samples.prompts",
    "sample_every": "samples.every",
    "sample_every_n_steps": "samples.every",
    "validation_split": "validate.fraction",
    "report_to": "tracker",
    "log_with": "tracker",
}
"""Names of the same settings in other trainers (kohya sd-scripts, diffusers, OneTrainer, transformers)."""


def suggest_key(key: str, known: list[str]) -> str | None:
    """Return the known dotted key that `key` was probably meant to be, or None.

    In this order: the name of another trainer; the same name in another section; similar spelling in the
    same section, then anywhere.
    """
    section, _, last = key.rpartition(".")
    name = last.lower().replace("-", "_").strip("_")
    if (other := OTHER_NAMES.get(name)) in known and other != key:
        return other
    same_name = [one for one in known if one.rpartition(".")[2] == name and one != key]
    if same_name:
        return same_name[0]
    siblings = [one for one in known if one.rpartition(".")[0] == section]
    names = {one.rpartition(".")[2]: one for one in reversed(known)}
    if close := nearest_name(name, [one.rpartition(".")[2] for one in siblings]):
        return f"{section}.{close}" if section else close
    close = nearest_name(name, names)
    return names[close] if close else None
