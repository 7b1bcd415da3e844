"""Options of the training scripts in diffusers' examples."""

from __future__ import annotations

from lorakit.config.recipe_import.draft import Draft, Rule, Without, not_needed
from lorakit.config.recipe_import.source import Source

_HUB = Without("adapters are published by a command of their own")
RULES: dict[str, Rule] = {
    **dict.fromkeys(("push_to_hub", "hub_token", "hub_model_id"), _HUB),
    "image_column": Without("export the dataset into a folder: lorakit data prepare DIR --help"),
    "caption_column": Without("export the dataset into a folder: lorakit data prepare DIR --help"),
    "random_flip": Without("lorakit does not mirror images"),
    "center_crop": Without("crops are part of the dataset: lorakit data bucket --help"),
    "num_class_images": Without("generate them: lorakit data --help"),
    "sample_batch_size": not_needed("left to lorakit's planner"),
    "offload": not_needed("left to lorakit's planner"),
    "max_sequence_length": Without("captions have the length that the base model's pipeline encodes"),
    "variant": Without("the folder or hub id decides"),
    "allow_tf32": Without("train.kernels measures it"),
    "prior_generation_precision": Without("class images are a folder"),
    "num_validation_images": Without("each prompt has its own seeds, in its line of the prompt file"),
    "guidance_scale": Without("networks with a guidance input are trained with guidance 1"),
    "adam_epsilon": Without("see optimizer.options"),
    "checkpoints_total_limit": "train.keep_optimizer_states",
    "prior_loss_weight": "objective.prior_loss_weight",
    "class_prompt": Without("captions of class images lie beside them"),
}  # fmt: skip


def read(source: Source, draft: Draft) -> None:
    """Fill a draft from the options of a script; its defaults where they differ from lorakit's."""
    draft.settings.setdefault("rank", 4)
    rank = draft.take("rank")
    draft.recipe |= {"adapter.rank": rank, "adapter.alpha": draft.take("lora_alpha", default=rank)}
    eight_bit = draft.take("use_8bit_adam")
    optimizer = draft.take("optimizer", default="adamw8bit" if eight_bit else "adamw")
    draft.put(
        "optimizer.name",
        "optimizer",
        "adamw8bit" if eight_bit and str(optimizer).lower() == "adamw" else optimizer,
    )
    draft.settings.setdefault("lr_scheduler", "constant")
    draft.settings.setdefault("mixed_precision", "no")
    draft.settings.setdefault("train_batch_size", 4 if "text_to_image" in source.script else 1)
    betas = [draft.take(f"adam_beta{number}") for number in (1, 2)]
    if all(isinstance(beta, float) for beta in betas):
        draft.recipe["optimizer.betas"] = betas
    if prompt := draft.take("instance_prompt"):
        draft.concepts.append({"folder": draft.take("instance_data_dir", "dataset_name"), "captions": prompt})
    if prompt := draft.take("validation_prompt"):
        draft.prompts.append({"id": "1", "prompt": prompt})
    if draft.take("with_prior_preservation"):
        draft.recipe["class_images"] = draft.take("class_data_dir")
    draft.apply(RULES)
