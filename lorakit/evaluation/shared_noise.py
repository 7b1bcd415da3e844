"""A test of whether two folders of images start from the same noise, prompt by prompt and seed by seed.

Equal names and seeds do not say so: another generator makes other noise of the same seed. Images from the
same noise are more alike than images of the same prompt from different seeds. A permutation test of the seeds
within the prompts tells the two cases apart without a threshold of similarity.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lorakit.evaluation.sample_files import SampleKey

FloatArray = NDArray[np.float64]
_PERMUTATIONS, _LEVEL = 2000, 0.01
_NO_DIFFERENCE = 1e-9
_MIN_ARRANGEMENTS = 200  # of the seeds; fewer cannot be beyond chance at `_LEVEL`


def share_noise(keys: Sequence[SampleKey], images: FloatArray, base: FloatArray) -> bool | None:
    """Return True if unit vectors (N, D) of images and of the base model's images pair by seed.

    None if there are too few prompts with several seeds to tell, or if all seeds give the same image.
    """
    rows: dict[str, list[int]] = {}
    for row, key in enumerate(keys):
        rows.setdefault(key.prompt_id, []).append(row)
    tables = [images[own] @ base[own].T for own in rows.values() if len(own) > 1]  # (S, S) of a prompt
    arrangements = sum(math.lgamma(len(table) + 1) for table in tables)
    if not tables or arrangements < math.log(_MIN_ARRANGEMENTS):
        return None
    observed = float(np.mean([np.trace(table) / len(table) for table in tables]))
    generator = np.random.default_rng(0)
    permuted = np.zeros(_PERMUTATIONS)
    for table in tables:
        order = generator.permuted(np.tile(np.arange(len(table)), (_PERMUTATIONS, 1)), axis=1)
        permuted += table[np.arange(len(table)), order].mean(1) / len(tables)
    if permuted.std() < _NO_DIFFERENCE:  # a model that makes one image of all seeds
        return None
    beyond = int((permuted >= observed - 1e-12).sum())
    return (beyond + 1) / (_PERMUTATIONS + 1) <= _LEVEL


def unpaired_note(name: str, is_shared: bool | None) -> str | None:
    """Return a sentence about images that do not, or may not, share the noise of the base model's images."""
    if is_shared is None:
        return (
            f"It is unknown if {name} and the base images start from the same noise: a test of it needs "
            "several prompts with several seeds. If they do not, drift includes the difference between seeds."
        )
    if is_shared:
        return None
    return (
        f"{name} and the base images do not start from the same noise, though their seeds have equal "
        "numbers: images of the same seed are as different as those of two seeds. Drift is "
        "not measured; differences compare means of equal prompts, with the noise of both in their intervals."
    )
