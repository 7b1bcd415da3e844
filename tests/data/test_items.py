from __future__ import annotations

import random

import pytest

from lorakit.data import fingerprints
from lorakit.data.items import load_training_records
from tests import runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return runs.make_dataset(tmp_path_factory.mktemp("data"), 6)


def shuffle(folder, order):
    """Write the lines of the manifest in another order, as an import or an editor may leave them."""
    file = folder / "manifest.jsonl"
    lines = sorted(file.read_bytes().splitlines(keepends=True))
    if order == "reversed":
        lines.reverse()
    else:
        random.Random(order).shuffle(lines)
    file.write_bytes(b"".join(lines))


@pytest.mark.parametrize("order", ["reversed", 1, 2, 3])
def test_the_order_of_the_manifest_changes_nothing(folder, order):
    before = load_training_records(folder)
    shuffle(folder, order)
    after = load_training_records(folder)
    assert after == before
    assert [record.file for record in after] == sorted(record.file for record in after)
    assert fingerprints.dataset_fingerprint(after) == fingerprints.dataset_fingerprint(before)


@pytest.mark.parametrize("order", ["reversed", 1, 2])
def test_a_run_whose_manifest_is_reordered_between_two_sessions_ends_in_the_same_bytes(
    folder, tmp_path, order
):
    train = {"steps": 4, "batch_size": 2, "save_every": 2, "precision": "fp32"}
    adapters = []
    for name in ("whole", "resumed"):
        file = runs.make_recipe(tmp_path / f"{name}.yaml", "tiny-dit", folder, tmp_path / name, train=train)
        if name == "resumed":
            with runs.killed_at(3):
                runs.train(file)
            shuffle(folder, order)
        adapters.append((runs.train(file) / "adapter.safetensors").read_bytes())
    assert adapters[0] == adapters[1]
