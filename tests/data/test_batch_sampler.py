from __future__ import annotations

from collections import Counter

import pytest
import torch

from lorakit.core import rng
from lorakit.data import batch_sampler


@pytest.mark.parametrize(("images", "batch"), [(5, 4), (7, 3), (3, 8), (20, 1)])
def test_an_epoch_is_an_exact_permutation_whatever_the_batch(images, batch):
    captions = [1] * images
    stream = [
        slot for step in range(60) for slot in batch_sampler.step_samples(step, batch, captions, seed=3)
    ]
    assert [slot.position for slot in stream] == list(range(60 * batch))
    for start in range(0, len(stream) - images, images):
        assert sorted(slot.image for slot in stream[start : start + images]) == list(range(images))
    assert len({tuple(s.image for s in stream[i : i + images]) for i in range(0, 3 * images, images)}) > 1


def test_the_order_is_a_function_of_step_alone():
    captions = [1, 2, 3, 1]
    later = batch_sampler.step_samples(17, 4, captions, seed=1)
    assert later == batch_sampler.step_samples(17, 4, captions, seed=1)
    assert later != batch_sampler.step_samples(17, 4, captions, seed=2)
    variants = {
        s.caption
        for step in range(40)
        for s in batch_sampler.step_samples(step, 4, captions, 1)
        if s.image == 2
    }
    assert variants == {0, 1, 2}


def test_micro_batches_have_one_shape_each_and_drop_nothing():
    shapes = [(64, 64), (96, 64), (64, 64), (64, 96), (96, 64)]
    chosen = batch_sampler.step_samples(0, 10, [1] * 5, seed=0)
    groups = batch_sampler.micro_batches(chosen, shapes, size=3)
    assert Counter(s for g in groups for s in g) == Counter(chosen)
    for group in groups:
        assert len({shapes[slot.image] for slot in group}) == 1
        assert len(group) <= 3


def test_weighted_micro_batches_give_the_full_batchs_gradient():
    shapes = [(1,), (2,), (1,), (2,), (2,)]
    chosen = batch_sampler.step_samples(0, 5, [1] * 5, seed=0)
    weight = torch.tensor(0.5, requires_grad=True)
    losses = {slot: (weight * (slot.image + 1) - 1) ** 2 for slot in chosen}
    (full,) = torch.autograd.grad(sum(losses.values()) / 5, weight, retain_graph=True)
    parts = batch_sampler.micro_batches(chosen, shapes, size=2)
    sums = [torch.autograd.grad(sum(losses[s] for s in g) / 5, weight, retain_graph=True)[0] for g in parts]
    assert sum(sums).item() == pytest.approx(full.item(), rel=1e-6)


def test_processes_share_a_step_without_overlap():
    chosen = batch_sampler.step_samples(2, 8, [1] * 5, seed=0)
    shares = [batch_sampler.shard(chosen, rank, 2) for rank in range(2)]
    assert sorted([*shares[0], *shares[1]], key=lambda s: s.position) == chosen
    assert len(shares[0]) == len(shares[1])


def test_keyed_numbers_depend_on_every_part_and_on_nothing_else():
    torch.manual_seed(1)
    first = rng.keyed_normal((3, 4), 0, "noise", 7)
    torch.manual_seed(2)
    assert torch.equal(first, rng.keyed_normal((3, 4), 0, "noise", 7))
    others = [rng.keyed_normal((3, 4), *key) for key in [(1, "noise", 7), (0, "time", 7), (0, "noise", 8)]]
    assert not any(torch.equal(first, other) for other in others)
    assert rng.derive_seed(1, "a", 12, 3) != rng.derive_seed(1, "a", 1, 23)
    values = [rng.keyed_uniform(0, "u", i) for i in range(4000)]
    assert 0 <= min(values) < max(values) < 1
    assert sum(values) / 4000 == pytest.approx(0.5, abs=0.02)
