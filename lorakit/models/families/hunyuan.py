"""The parts that Hunyuan's image and video models share: two text encoders, and distilled variants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lorakit.core.errors import ConfigError
from lorakit.models.families.family import Conditioning


def encode_without_padding(pipe: Any, captions: list[str]) -> Conditioning:
    """Encode a caption, and the words it quotes, without padding."""
    embeds, mask, quoted, quoted_mask = pipe.encode_prompt(captions, device=pipe.text_encoder.device)
    kept, kept_2 = mask[0].bool(), quoted_mask[0].bool()
    return {
        "prompt_embeds": embeds[:, kept],  # (1, L, D)
        "prompt_embeds_mask": mask[:, kept],
        "prompt_embeds_2": quoted[:, kept_2],  # (1, L of the quoted words, D2)
        "prompt_embeds_mask_2": quoted_mask[:, kept_2],
    }


def refuse_distilled(config: Mapping[str, Any], name: str, title: str) -> None:
    """Raise ConfigError for a network that was distilled by mean flow; `config` is its configuration."""
    if config.get("use_meanflow"):
        raise ConfigError(
            f"the distilled {name} cannot be trained as a flow",
            remedy=f"train on {title} itself",
        )
