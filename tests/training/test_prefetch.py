"""Batches loaded ahead by a thread: the same bytes as loaded at their use."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lorakit.core.errors import DataError
from lorakit.training.prefetch import BatchRequest, Prefetcher
from tests import runs
from tests.training.test_losses import training_step


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.make_dataset(tmp_path_factory.mktemp("data"), 4)


@pytest.mark.parametrize("size", [1, 2])
def test_steps_with_batches_loaded_ahead_have_the_same_bytes(size, data, tmp_path):
    """Also if the number of images at once changes between loading and use."""
    train = {"batch_size": 2, "accumulate": 2, "steps": 4, "precision": "fp32"}
    values = []
    for ahead in (False, True):
        step = training_step(tmp_path / str(ahead), data, train=train)
        prefetcher = step.loss.prefetcher = Prefetcher(step.loss.load, torch.device("cpu"), ahead=ahead)
        for number in range(3):
            step.run()
            if number == 1:
                step.state.micro_batch_size = size
            assert bool(prefetcher._loading) == ahead
        prefetcher.close()
        values.append((step.parameters.values.clone(), [result.loss for result in step._unread]))
    assert torch.equal(values[0][0], values[1][0])
    assert values[0][1] == values[1][1]


def test_an_error_of_the_thread_is_raised_where_the_batch_is_used():
    class Data:
        is_cached = True

    def load(request):
        raise DataError("a cache entry was deleted")

    prefetcher = Prefetcher(load, torch.device("cpu"), ahead=True)
    request = BatchRequest.of(Data(), [], "noise", [0.5])
    prefetcher.request([request])
    with pytest.raises(DataError, match="was deleted"):
        prefetcher.take(request)
    prefetcher.close()
