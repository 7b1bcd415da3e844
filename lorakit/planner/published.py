"""Published models, counted at their usual size without their files: for tables, and for plans beforehand.

`published.json` holds the counts of a LoRA of rank 16 on the default target modules, in half precision.
`python -m lorakit.planner.published` counts again and writes it.
"""

from __future__ import annotations

import functools
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from lorakit.core import strict_json
from lorakit.models.families.published_models import PUBLISHED_MODELS, PublishedModel

if TYPE_CHECKING:
    import torch

    from lorakit.planner.network_count import NetworkCount

COUNTS_FILE = "published.json"
RANK = 16
"""Rank of the adapters of the stored counts."""


def count_model(model: PublishedModel, dtype: torch.dtype | None = None) -> NetworkCount:
    """Count a model with a LoRA of the rank `RANK` on the default target modules."""
    import torch

    from lorakit import adapters
    from lorakit.models import families
    from lorakit.planner.network_count import count_network

    family = families.get_family(model.family)
    return count_network(
        family,
        model.build,
        lambda network: adapters.inject_adapter(
            network, rank=RANK, alpha=RANK, targets=family.target_modules
        ),
        model.latents,
        model.shapes(),
        dtype=dtype or torch.bfloat16,
        image=(model.resolution, model.resolution),
    )


@functools.cache
def stored_counts() -> dict[str, NetworkCount]:
    """Return the stored counts by the models' keys."""
    from lorakit.planner.network_count import network_count_from_json

    text = resources.files("lorakit.planner").joinpath(COUNTS_FILE).read_bytes()
    values = strict_json.parse_json(text, COUNTS_FILE)
    return {key: network_count_from_json(count) for key, count in values.items()}


def main() -> None:
    """Count all models and write their counts."""
    from lorakit.core import storage

    counts = {model.key: count_model(model).to_json() for model in PUBLISHED_MODELS}
    storage.write_json(Path(__file__).with_name(COUNTS_FILE), counts)


if __name__ == "__main__":
    main()
