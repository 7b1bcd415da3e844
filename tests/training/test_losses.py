"""What a step costs with each part of the objective, on the embedded bases; and that a run with any of them
goes on in the same bytes."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from lorakit import adapters, manifest
from lorakit.config import recipe
from lorakit.core import storage
from lorakit.core.errors import ConfigError, DataError
from lorakit.data import batch_sampler, caches
from lorakit.models import base_model
from lorakit.training import regularization, run_plan, setup
from lorakit.training.run_folder import RunFolder
from lorakit.training.trainer import Trainer
from tests import runs
from tests.data.test_mask_cache import repainted, with_masks

STRATA = {"stratified": True, "preserve": 1.0, "class_weight": 0.7, "caption_dropout": 0.3}
NAMED = {"trigger": "sks", "class_noun": "round"}  # "a sks picture" becomes "a round picture"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_masks(runs.make_dataset(tmp_path_factory.mktemp("data"), 4), every=3)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class images: other captions, other sizes in another order."""
    folder = runs.make_dataset(tmp_path_factory.mktemp("class"), 5)
    records = manifest.load_manifest(folder)
    for index, record in enumerate(records):
        caption = manifest.Caption(f"a picture number {index}", "hand")
        records[index] = dataclasses.replace(record, captions=(caption,))
    manifest.save_manifest(folder, list(reversed(records)))
    return folder


def trainer(folder: Path, data: Path, base: str = "tiny-dit", **changes: Any) -> Trainer:
    """A trainer before its first step, with an adapter that has an effect."""
    file = runs.make_recipe(folder / "r.yaml", base, data, folder / "run", **changes)
    chosen = recipe.load_recipe(file)
    plan = run_plan.plan_training(chosen, lambda text: None)
    accelerator = Accelerator(cpu=True)
    made = setup.build_session(chosen, plan, accelerator.device, main=True, wait=lambda: None)
    with torch.no_grad():
        for number, (_, parameter) in enumerate(adapters.trainable_parameters(made.denoiser)):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            parameter.add_(0.05 * noise)
    run = RunFolder(folder / "run")
    run.begin(chosen, plan.inputs)
    return Trainer(made, accelerator, run)


def again(made: Trainer, **objective: Any) -> Trainer:
    """The same model and data under another objective, without loading them again."""
    named = {key: objective.pop(key) for key in NAMED if key in objective}
    tree = made.recipe.dump() | {"objective": objective} | named
    if not (class_weight := objective.get("class_weight")):
        tree["class_images"] = None
    chosen = recipe.parse_recipe(tree)
    goal = run_plan.build_objective(chosen, made.made.family, made.made.pipe)
    classes = made.made.class_images if class_weight else None
    other = dataclasses.replace(made.made, recipe=chosen, objective=goal, class_images=classes)
    return Trainer(other, made.accelerator, made.run)


def gradients(made: Trainer, step: int = 0) -> tuple[float, list[torch.Tensor]]:
    """(loss, gradients) of one step."""
    chosen = made.made.recipe
    slots = batch_sampler.step_samples(
        step, 4, made.made.train.captions, chosen.train.seed, chosen.objective.caption_dropout
    )
    loss = float(made._gradients(slots))
    found = [p.grad.clone() for _, p in made.parameters]
    made.optimizer.zero_grad(set_to_none=True)
    return loss, found


def test_other_pixels_outside_hidden_masks_change_no_bit_of_the_gradient(data, tmp_path):
    every = with_masks(shutil.copytree(data, tmp_path / "data"), every=1)
    poisoned = repainted(every, tmp_path / "poisoned", seed=7)
    settings = {"objective": {"mask": {"hide": True}, "huber": {}}}
    found = [trainer(tmp_path / d.name / "t", d, **settings) for d in (every, poisoned)]
    one, other = map(gradients, found)
    assert one[0] == other[0]
    assert all(torch.equal(*pair) for pair in zip(one[1], other[1], strict=True))
    seen = [caches.LatentCache(d, base_model.resolve_base("tiny-dit")) for d in (every, poisoned)]
    items = [made.made.train.items[0] for made in found]
    assert seen[0].key(items[0]) != seen[1].key(items[1])  # they are other pictures


def test_outside_and_prior_add_what_they_say(data, tmp_path):
    """Loss of the inside, plus the prior's share of how far the adapter moved the outside."""
    made = trainer(tmp_path, data, objective={"mask": {}})
    image = next(i for i, item in enumerate(made.made.train.items) if item.record.mask)
    slot = [batch_sampler.SampleIndex(0, image, 0)]
    given = made.cost.noised(made.made.train, slot, "noise", [0.4])
    prediction, outside = made.cost.predict(given), 1 - given.mask
    moved = (prediction - made.cost.untrained(given)).square()
    drift = (moved * outside).sum() / outside.expand_as(moved).sum()
    inside = made.loss(slot, [0.4]).item()
    assert drift > 1e-4
    prior = again(made, mask={"prior": 0.5}).loss(slot, [0.4]).item()
    assert prior == pytest.approx(inside + 0.5 * drift.item(), rel=1e-5)
    whole = again(made, mask={"outside": 1.0}).loss(slot, [0.4]).item()
    assert whole == pytest.approx((prediction - given.target).square().mean().item(), rel=1e-5)

    plain = again(made, mask={}).cost
    moved_noise = again(made, noise_offset=0.1).cost
    slots = [batch_sampler.SampleIndex(position, image, 0) for position in range(64)]
    for purpose, offset in (("noise", 0.1), ("validation", 0.0)):  # a constant in each channel
        one, two = (cost.noised(made.made.train, slots, purpose, [0.5] * 64) for cost in (plain, moved_noise))
        difference = two.noise - one.noise
        assert difference.flatten(2).std(2).max() < 1e-6
        assert difference.std().item() == pytest.approx(offset, rel=0.15)


def test_dropped_captions_are_empty_and_keyed_by_position(data, tmp_path):
    made = trainer(tmp_path, data, objective={"caption_dropout": 0.25})
    slots = batch_sampler.step_samples(0, 4000, made.made.train.captions, 0, 0.25)
    empty = [slot for slot in slots if slot.caption == batch_sampler.EMPTY_CAPTION]
    assert len(empty) / 4000 == pytest.approx(0.25, abs=0.02)
    assert [batch_sampler.sample_at(s.position, made.made.train.captions, 0, 0.25) for s in empty] == empty
    kept = batch_sampler.step_samples(0, 4000, made.made.train.captions, 0)
    assert [(s.position, s.image) for s in kept] == [(s.position, s.image) for s in slots]
    batch = made.made.train.batch(empty[:1], torch.device("cpu"))
    size = made.made.train.items[empty[0].image].size
    expected = made.made.train._text.get("", size)
    assert all(torch.equal(batch.cond[name][0], value) for name, value in expected.items())


def test_class_images_add_their_weighted_loss(data, others, tmp_path):
    made = trainer(tmp_path, data, class_images=str(others))
    alone = gradients(again(made))
    found = {weight: gradients(again(made, class_weight=weight)) for weight in (0.5, 2.0)}
    extra = {weight: found[weight][0] - alone[0] for weight in found}
    assert extra[2.0] == pytest.approx(4 * extra[0.5], rel=1e-4)
    assert extra[2.0] > 0.01
    for base, half, double in zip(alone[1], found[0.5][1], found[2.0][1], strict=True):
        assert torch.allclose(double - base, 4 * (half - base), atol=2e-5)
    part = again(made, class_weight=1.0).cost.extras(
        batch_sampler.step_samples(0, 200, made.made.train.captions, 0)
    )[0]
    shown = [made.made.class_images.caption(slot) for slot in part.slots]
    assert sorted({text: shown.count(text) for text in shown}.values()) == [40] * 5
    assert not any("sks" in text for text in shown)


def test_a_class_image_of_the_subject_is_named(data, others, tmp_path):
    file = runs.make_recipe(
        tmp_path / "r.yaml", "tiny-dit", others, tmp_path / "run", class_images=str(data), trigger="SKS"
    )
    with pytest.raises(DataError, match=r"class image's caption has the trigger 'SKS'") as caught:
        run_plan.plan_training(recipe.load_recipe(file), print)
    assert "0.png" in str(caught.value)


def test_preservation_holds_captions_without_the_trigger_at_the_base(data, tmp_path):
    made = trainer(tmp_path, data, **NAMED, objective={"preserve": 2.0, "caption_dropout": 0.5})
    slots = batch_sampler.step_samples(0, 40, made.made.train.captions, 0, 0.5)
    (part,) = made.cost.extras(slots)
    assert [s.position for s in part.slots] == [
        s.position for s in slots if s.caption != batch_sampler.EMPTY_CAPTION
    ]
    assert part.weight == 2.0
    slot = [part.slots[0]]
    drift = part.cost(slot, [0.3])
    given = made.cost.noised(made.made.train, slot, "noise", [0.3], lambda text: text.replace("sks", "round"))
    own = made.cost.noised(made.made.train, slot, "noise", [0.3])
    assert torch.equal(given.noisy, own.noisy)
    assert not torch.equal(given.cond["prompt_embeds"], own.cond["prompt_embeds"])
    expected = (made.cost.predict(given) - made.cost.untrained(given)).square().mean()
    assert drift.item() == pytest.approx(expected.item(), rel=1e-5)
    assert drift > 1e-5
    with torch.no_grad():
        for name, parameter in made.parameters:
            if name.endswith("lora_B.weight"):
                parameter.zero_()
    assert part.cost(slot, [0.3]).item() == 0  # nothing to hold back yet
    assert regularization.replace_trigger(made.recipe, "a SKS round heart") == "a round heart"


def test_preservation_holds_back_what_training_moves(data, tmp_path):
    """The same few steps with and without: predictions for captions without the trigger stay nearer."""
    made = trainer(tmp_path, data, **NAMED, optimizer={"lr": 1e-2}, objective={"preserve": 1.0})
    start = [parameter.detach().clone() for _, parameter in made.parameters]
    (part,) = again(made, **NAMED, preserve=1.0).cost.extras([batch_sampler.SampleIndex(1000, 0, 0)])
    moved = {}
    for weight in (0.0, 5.0):
        with torch.no_grad():
            for (name, parameter), first in zip(made.parameters, start, strict=True):
                parameter.copy_(0 * first if name.endswith("lora_B.weight") else first)  # no effect yet
        run = again(made, **NAMED, preserve=weight)
        for _ in range(4):
            run.step()
        moved[weight] = sum(part.cost(list(part.slots), [time]).item() for time in (0.2, 0.5, 0.8))
    assert 0 < moved[5.0] < 0.5 * moved[0.0]


def test_shares_of_processes_add_up_to_the_whole_step(data, others, tmp_path):
    made = trainer(tmp_path, data, **NAMED, class_images=str(others), objective=STRATA)
    slots = batch_sampler.step_samples(1, 4, made.made.train.captions, 0, 0.3)
    found = []
    for mine in (slots, batch_sampler.shard(slots, 0, 2), batch_sampler.shard(slots, 1, 2)):
        loss = float(made._gradients(mine))
        found.append([torch.tensor(loss), *(p.grad.clone() for _, p in made.parameters)])
        made.optimizer.zero_grad(set_to_none=True)
    for whole, one, two in zip(*found, strict=True):
        assert torch.allclose(whole, (one + two) / 2, atol=1e-5)


def test_preservation_without_any_trigger_is_refused(others, tmp_path):
    file = runs.make_recipe(
        tmp_path / "r.yaml", "tiny-dit", others, tmp_path / "run", **NAMED, objective={"preserve": 1}
    )
    with pytest.raises(ConfigError, match="needs captions with the trigger 'sks', and no picture has one"):
        run_plan.plan_training(recipe.load_recipe(file), print)


def test_stratified_needs_more_than_one_image(data, tmp_path):
    one = {"steps": 2, "batch_size": 1}
    file = runs.make_recipe(
        tmp_path / "r.yaml", "tiny-dit", data, tmp_path / "run", train=one, objective={"stratified": True}
    )
    with pytest.raises(ConfigError, match="a step has one"):
        runs.train(file)
    regularization.check_stratified_batch(recipe.load_recipe(file), processes=2)


ALL: dict[str, tuple[str, dict[str, Any]]] = {
    "class": (
        "tiny-unet",
        {"weighting": "min-snr", "gamma": 3.0, "noise_offset": 0.05, "huber": {}, "caption_dropout": 0.3},
    ),
    "strata": (
        "tiny-dit",
        {"timesteps": "mode", "stratified": True, "weighting": "cosmap", "shift": 2.0, "preserve": 1.0},
    ),
    "mask": ("tiny-dit", {"mask": {"prior": 0.5, "hide": True}, "weighting": "sigma-sqrt"}),
}


@pytest.mark.parametrize("name", ALL)
def test_a_run_that_was_killed_goes_on_in_the_same_bytes(name, data, others, tmp_path):
    base, objective = ALL[name]
    changes: dict[str, Any] = {"objective": objective, **NAMED}
    changes["train"] = {"steps": 2, "batch_size": 2, "save_every": 1, "precision": "fp32"}
    if name == "class":
        changes["class_images"] = str(others)
    whole = runs.train(runs.make_recipe(tmp_path / "a.yaml", base, data, tmp_path / "a", **changes))
    file = runs.make_recipe(tmp_path / "b.yaml", base, data, tmp_path / "b", **changes)
    with runs.killed_at(1):
        runs.train(file)
    resumed = runs.train(file)
    assert (resumed / "adapter.safetensors").read_bytes() == (whole / "adapter.safetensors").read_bytes()
    rows = storage.read_jsonl(whole / "metrics.jsonl")
    assert all(0 < row["loss"] < 1e6 for row in rows)
    assert all(row["grad_norm"] > 0 for row in rows)
