"""What Hunyuan's models of pictures and of clips share: two text encoders, and distilled twins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lorakit.core.errors import ConfigError
from lorakit.models.families.family import Conditioning


def encode(pipe: Any, captions: list[str]) -> Conditioning:
    """A caption's own words, and those that it quotes, without what fills them up."""
    embeds, mask, quoted, quoted_mask = pipe.encode_prompt(captions, device=pipe.text_encoder.device)
    kept, kept_2 = mask[0].bool(), quoted_mask[0].bool()
    return {
        "prompt_embeds": embeds[:, kept],  # (1, L, D)
        "prompt_embeds_mask": mask[:, kept],
        "prompt_embeds_2": quoted[:, kept_2],  # (1, length of what the caption quotes, D2)
        "prompt_embeds_mask_2": quoted_mask[:, kept_2],
    }


def refuse_distilled(settings: Mapping[str, Any], short: str, title: str) -> None:
    """ConfigError for a network that was distilled by mean flow; `settings` are its configuration."""
    if settings.get("use_meanflow"):
        raise ConfigError(
            f"the distilled {short} jumps between times and cannot be trained as a flow",
            remedy=f"train on {title} itself",
        )
