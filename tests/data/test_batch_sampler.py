"""Samples of a step: exact epochs, micro-batches of one shape, and keyed random numbers."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from lorakit.core import rng
from lorakit.data import batch_sampler
from lorakit.data.caption_choice import CaptionChoice

ONE_CAPTION = CaptionChoice((1.0,))


@pytest.mark.parametrize(("num_images", "batch_size"), [(5, 4), (7, 3), (3, 8), (20, 1)])
def test_an_epoch_is_an_exact_permutation_with_any_batch_size(num_images, batch_size):
    captions = [ONE_CAPTION] * num_images
    steps = (batch_sampler.step_samples(step, batch_size, captions, seed=3) for step in range(60))
    stream = [sample for samples in steps for sample in samples]
    assert [sample.position for sample in stream] == list(range(60 * batch_size))
    starts = range(0, len(stream) - num_images, num_images)
    epochs = [tuple(s.image_index for s in stream[start : start + num_images]) for start in starts]
    assert all(sorted(epoch) == list(range(num_images)) for epoch in epochs)
    assert len(set(epochs[:3])) > 1


def test_the_samples_of_a_step_depend_on_step_and_seed_only():
    captions = [CaptionChoice((1 / count,) * count) for count in (1, 2, 3, 1)]
    later = batch_sampler.step_samples(17, 4, captions, seed=1)
    assert later == batch_sampler.step_samples(17, 4, captions, seed=1)
    assert later != batch_sampler.step_samples(17, 4, captions, seed=2)
    caption_indices = {
        s.caption_index
        for step in range(40)
        for s in batch_sampler.step_samples(step, 4, captions, 1)
        if s.image_index == 2
    }
    assert caption_indices == {0, 1, 2}


def test_each_micro_batch_has_one_shape_and_no_sample_is_dropped():
    shapes = [(64, 64), (96, 64), (64, 64), (64, 96), (96, 64)]
    samples = batch_sampler.step_samples(0, 10, [ONE_CAPTION] * 5, seed=0)
    groups = batch_sampler.micro_batches(samples, shapes, size=3)
    assert Counter(s for g in groups for s in g) == Counter(samples)
    for group in groups:
        assert len({shapes[sample.image_index] for sample in group}) == 1
        assert len(group) <= 3


def test_weighted_micro_batches_give_the_gradient_of_the_full_batch():
    shapes = [(1,), (2,), (1,), (2,), (2,)]
    samples = batch_sampler.step_samples(0, 5, [ONE_CAPTION] * 5, seed=0)
    weight = torch.tensor(0.5, requires_grad=True)
    losses = {sample: (weight * (sample.image_index + 1) - 1) ** 2 for sample in samples}
    (full,) = torch.autograd.grad(sum(losses.values()) / 5, weight, retain_graph=True)
    parts = batch_sampler.micro_batches(samples, shapes, size=2)
    sums = [torch.autograd.grad(sum(losses[s] for s in g) / 5, weight, retain_graph=True)[0] for g in parts]
    assert sum(sums).item() == pytest.approx(full.item(), rel=1e-6)


def test_processes_split_a_step_without_overlap():
    samples = batch_sampler.step_samples(2, 8, [ONE_CAPTION] * 5, seed=0)
    shares = [batch_sampler.shard(samples, rank, 2) for rank in range(2)]
    assert sorted([*shares[0], *shares[1]], key=lambda s: s.position) == samples
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


@pytest.mark.parametrize("content_hash", ["a" * 64, "b" * 64, "c" * 64])
def test_a_run_from_an_adapter_sees_other_images_and_noise_than_the_run_before(content_hash):
    captions, batch_size = [ONE_CAPTION] * 7, 4
    first = batch_sampler.continued_position(content_hash, len(captions), batch_size)
    assert first % len(captions) == first % batch_size == 0  # the beginning of an epoch and of a step
    earlier, later = (
        [
            sample
            for step in range(7)
            for sample in batch_sampler.step_samples(step, batch_size, captions, 0, first_position=position)
        ]
        for position in (0, first)
    )
    assert not {sample.position for sample in earlier} & {sample.position for sample in later}
    assert [s.image_index for s in earlier] != [s.image_index for s in later]
    assert all(sorted(s.image_index for s in later[k : k + 7]) == list(range(7)) for k in (0, 7, 14))
