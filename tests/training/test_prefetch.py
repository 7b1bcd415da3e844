"""Batches loaded ahead, by a thread or in groups: the same bytes as loaded at their use."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lorakit.core.errors import DataError
from lorakit.training import prefetch
from lorakit.training.prefetch import BatchRequest, Prefetcher
from tests import runs
from tests.training.test_losses import training_step


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.make_dataset(tmp_path_factory.mktemp("data"), 4)


@pytest.mark.parametrize("size", [1, 2])
def test_steps_with_batches_loaded_ahead_have_the_same_bytes(size, data, tmp_path, monkeypatch):
    """By a thread or in groups, also if the number of images at once changes between loading and use."""
    train = {"batch_size": 2, "accumulate": 2, "steps": 4, "precision": "fp32"}
    values = []
    for in_thread, group in ((False, 1), (False, 3), (True, 1)):
        monkeypatch.setattr(prefetch, "GROUP_STEPS", group)
        step = training_step(tmp_path / f"{in_thread} {group}", data, train=train)
        device = torch.device("cpu")
        prefetcher = step.loss.prefetcher = Prefetcher(step.loss.load, device, in_thread=in_thread)
        for number in range(3):
            step.run()
            if number == 1:
                step.state.micro_batch_size = size
            assert bool(prefetcher._loading) == in_thread
            if number == 0:
                assert any(prefetcher._waiting.values()) == (group > 1)
        prefetcher.close()
        values.append((step.parameters.values.clone(), [result.loss for result in step._unread]))
    assert all(torch.equal(value, values[0][0]) for value, _ in values)
    assert values[0][1] == values[1][1] == values[2][1]


class Data:
    is_cached = True


def requests(count: int) -> list[BatchRequest]:
    return [BatchRequest.of(Data(), [], "noise", [number / 10]) for number in range(count)]


@pytest.mark.parametrize(
    ("sizes", "loaded"),
    [((10, 10, 10, 10), [0, 1, 2, 3]), ((10, 95, 10, 10), [0, 1]), ((101, 1, 1, 1), [0])],
)
def test_batches_are_loaded_together_as_long_as_they_are_small(sizes, loaded, monkeypatch):
    monkeypatch.setattr(prefetch, "GROUP_BYTES", 100)
    asked, calls = requests(len(sizes)), []

    def load(request):
        calls.append(asked.index(request))
        return SimpleNamespace(nbytes=sizes[calls[-1]], number=calls[-1])

    prefetcher = Prefetcher(load, torch.device("cpu"))
    prefetcher.request(asked)
    assert prefetcher.take(asked[0]).number == 0
    assert calls == loaded
    assert [prefetcher.take(request).number for request in asked[1:]] == [1, 2, 3]
    assert sorted(calls) == [0, 1, 2, 3]  # each once


@pytest.mark.parametrize("in_thread", [True, False])
def test_an_error_is_raised_where_the_batch_is_used(in_thread):
    first, second = requests(2)

    def load(request):
        if request is second:
            raise DataError("a cache entry was deleted")
        return SimpleNamespace(nbytes=1, move=lambda move: None)

    prefetcher = Prefetcher(load, torch.device("cpu"), in_thread=in_thread)
    prefetcher.request([first, second])
    prefetcher.take(first)
    with pytest.raises(DataError, match="was deleted"):
        prefetcher.take(second)
    prefetcher.close()
