"""The terms of a step's loss for each part of the objective, on the embedded bases; and that a run with any
of them resumes in the same bytes."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from lorakit import manifest
from lorakit.config import recipe as recipes
from lorakit.core import storage
from lorakit.core.errors import ConfigError, DataError
from lorakit.data import batch_sampler, caches
from lorakit.models import base_model
from lorakit.training import regularization, run_plan
from lorakit.training.step import TrainingStep
from tests import runs
from tests.masked_data import add_masks, repaint_unmasked
from tests.training.training_steps import training_step

STRATA = {"stratified_timesteps": True, "output_preservation": 1.0, "prior_loss_weight": 0.7}
SUBJECT = {"trigger": "sks", "class_noun": "round"}  # "a sks picture" becomes "a round picture"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return add_masks(runs.make_dataset(tmp_path_factory.mktemp("data"), 4), every=3)


@pytest.fixture(scope="module")
def class_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class images: other captions, other sizes in another order."""
    folder = runs.make_dataset(tmp_path_factory.mktemp("class"), 5)
    records = manifest.load_manifest(folder)
    for index, record in enumerate(records):
        caption = manifest.Caption(f"a picture number {index}", "file")
        records[index] = dataclasses.replace(record, captions=(caption,))
    manifest.save_manifest(folder, list(reversed(records)))
    return folder


def with_objective(step: TrainingStep, **objective: Any) -> TrainingStep:
    """The same model and data with another objective, without loading them again."""
    session = step.session
    subject = {key: objective.pop(key) for key in SUBJECT if key in objective}
    tree = step.recipe.dump() | {"objective": objective} | subject
    if not (prior_loss_weight := objective.get("prior_loss_weight")):
        tree["class_images"] = None
    recipe = recipes.parse_recipe(tree)
    other = dataclasses.replace(
        session,
        recipe=recipe,
        objective=run_plan.build_objective(recipe, session.family, session.pipe),
        class_image_set=session.class_image_set if prior_loss_weight else None,
    )
    return TrainingStep(other, step.accelerator, print)


def gradients(step: TrainingStep, number: int = 0) -> tuple[float, list[torch.Tensor]]:
    """(loss, gradients) of one step of four images."""
    choices = step.session.train_set.caption_choices
    samples = batch_sampler.step_samples(number, 4, choices, step.recipe.train.seed)
    loss = float(step.compute_gradients(samples))
    values = [gradient.clone() for _, gradient in step.parameters.gradient_views()]
    step.parameters.zero_gradients()
    return loss, values


def test_other_pixels_outside_grayed_masks_change_no_bit_of_the_gradient(data, tmp_path):
    every = add_masks(shutil.copytree(data, tmp_path / "data"), every=1)
    repainted = repaint_unmasked(every, tmp_path / "repainted", seed=7)
    settings = {"objective": {"masked_loss": {"gray_unmasked": True}, "huber": {}}}
    steps = [training_step(tmp_path / d.name / "t", d, **settings) for d in (every, repainted)]
    first, second = map(gradients, steps)
    assert first[0] == second[0]
    assert all(torch.equal(*pair) for pair in zip(first[1], second[1], strict=True))
    plain = caches.LatentCache(base_model.resolve_base("tiny-dit"))
    items = [step.session.train_set.items[0] for step in steps]
    assert plain.key(items[0]) != plain.key(items[1])  # they are different images


def test_unmasked_weight_and_output_preservation_add_the_stated_terms(data, tmp_path):
    """The loss inside the mask, plus the weighted distance that the adapter moved predictions outside."""
    step = training_step(tmp_path, data, objective={"masked_loss": {}})
    data_set = step.session.train_set
    image = next(i for i, item in enumerate(data_set.items) if item.record.mask)
    sample = [batch_sampler.SampleIndex(0, image, 0)]
    batch = step.loss.add_noise(data_set, sample, "noise", [0.4])
    prediction, outside = step.loss.predict(batch), 1 - batch.mask
    moved = (prediction - step.loss.predict_without_adapter(batch)).square()
    distance = (moved * outside).sum() / outside.expand_as(moved).sum()
    inside = step.sample_losses(sample, [0.4]).item()
    assert distance > 1e-4
    preserved = with_objective(step, masked_loss={"output_preservation": 0.5})
    expected = inside + 0.5 * distance.item()
    assert preserved.sample_losses(sample, [0.4]).item() == pytest.approx(expected, rel=1e-5)
    whole = with_objective(step, masked_loss={"unmasked_weight": 1.0}).sample_losses(sample, [0.4]).item()
    assert whole == pytest.approx((prediction - batch.target).square().mean().item(), rel=1e-5)


def test_the_noise_offset_is_a_constant_in_each_channel_of_training_noise_only(data, tmp_path):
    step = training_step(tmp_path, data)
    plain, offset = step.loss, with_objective(step, noise_offset=0.1).loss
    samples = [batch_sampler.SampleIndex(position, 0, 0) for position in range(64)]
    for purpose, std in (("noise", 0.1), ("validation", 0.0)):
        first, second = (
            loss.add_noise(step.session.train_set, samples, purpose, [0.5] * 64) for loss in (plain, offset)
        )
        difference = second.noise - first.noise
        assert difference.flatten(2).std(2).max() < 1e-6
        assert difference.std().item() == pytest.approx(std, rel=0.15)


def test_dropped_captions_are_empty_and_keyed_by_position(data, tmp_path):
    data_set = training_step(tmp_path, data, caption_use={"caption_dropout": 0.25}).session.train_set
    choices = data_set.caption_choices
    samples = batch_sampler.step_samples(0, 4000, choices, 0)
    empty = [sample for sample in samples if sample.caption_index == batch_sampler.EMPTY_CAPTION]
    assert len(empty) / 4000 == pytest.approx(0.25, abs=0.02)
    assert [batch_sampler.sample_at(s.position, choices, 0) for s in empty] == empty
    without = batch_sampler.step_samples(0, 4000, [dataclasses.replace(c, dropout=0.0) for c in choices], 0)
    assert [(s.position, s.image_index) for s in without] == [(s.position, s.image_index) for s in samples]
    batch = data_set.batch(empty[:1], torch.device("cpu"))
    expected = data_set._text.get("", data_set.items[empty[0].image_index].bucket)
    assert all(torch.equal(batch.cond[name][0], value) for name, value in expected.items())


def test_class_images_add_their_weighted_loss(data, class_images, tmp_path):
    step = training_step(tmp_path, data, class_images=str(class_images))
    alone = gradients(with_objective(step))
    weighted = {w: gradients(with_objective(step, prior_loss_weight=w)) for w in (0.5, 2.0)}
    extra = {weight: loss - alone[0] for weight, (loss, _) in weighted.items()}
    assert extra[2.0] == pytest.approx(4 * extra[0.5], rel=1e-4)
    assert extra[2.0] > 0.01
    for base, half, double in zip(alone[1], weighted[0.5][1], weighted[2.0][1], strict=True):
        assert torch.allclose(double - base, 4 * (half - base), atol=2e-5)
    samples = batch_sampler.step_samples(0, 200, step.session.train_set.caption_choices, 0)
    term = with_objective(step, prior_loss_weight=1.0).regularization.terms(samples)[0]
    captions = [step.session.class_image_set.caption(sample) for sample in term.samples]
    assert sorted({text: captions.count(text) for text in captions}.values()) == [40] * 5
    assert not any("sks" in text for text in captions)


def test_a_class_image_of_the_subject_is_named(data, class_images, tmp_path):
    changes = {"class_images": str(data), "trigger": "SKS"}
    file = runs.make_recipe(tmp_path / "r.yaml", "tiny-dit", class_images, tmp_path / "run", **changes)
    with pytest.raises(DataError, match=r"class image's caption has the trigger 'SKS'") as caught:
        run_plan.plan_training(recipes.load_recipe(file), print)
    assert "0.png" in str(caught.value)


def test_output_preservation_holds_captions_without_the_trigger_at_the_base(data, tmp_path):
    changes = {"objective": {"output_preservation": 2.0}, "caption_use": {"caption_dropout": 0.5}}
    step = training_step(tmp_path, data, **SUBJECT, **changes)
    data_set, loss = step.session.train_set, step.loss
    samples = batch_sampler.step_samples(0, 40, data_set.caption_choices, 0)
    (term,) = step.regularization.terms(samples)
    assert [s.position for s in term.samples] == [
        s.position for s in samples if s.caption_index != batch_sampler.EMPTY_CAPTION
    ]
    assert term.weight == 2.0
    sample = [term.samples[0]]
    distance = term.loss_fn(sample, [0.3])
    replaced = loss.add_noise(data_set, sample, "noise", [0.3], lambda text: text.replace("sks", "round"))
    own = loss.add_noise(data_set, sample, "noise", [0.3])
    assert torch.equal(replaced.noisy_latents, own.noisy_latents)
    assert not torch.equal(replaced.cond["prompt_embeds"], own.cond["prompt_embeds"])
    expected = (loss.predict(replaced) - loss.predict_without_adapter(replaced)).square().mean()
    assert distance.item() == pytest.approx(expected.item(), rel=1e-5)
    assert distance > 1e-5
    with torch.no_grad():
        for name, parameter in step.parameters.named:
            if name.endswith("lora_B.weight"):
                parameter.zero_()
    assert term.loss_fn(sample, [0.3]).item() == 0  # the adapter has no effect
    assert regularization.replace_trigger(step.recipe, "a SKS round heart") == "a round heart"


def test_output_preservation_reduces_what_training_moves(data, tmp_path):
    """The same few steps with and without: predictions for captions without the trigger stay nearer."""
    objective = {"output_preservation": 1.0}
    step = training_step(tmp_path, data, **SUBJECT, optimizer={"lr": 1e-2}, objective=objective)
    start = [parameter.detach().clone() for _, parameter in step.parameters.named]
    (term,) = with_objective(step, **SUBJECT, **objective).regularization.terms(
        [batch_sampler.SampleIndex(1000, 0, 0)]
    )
    moved = {}
    for weight in (0.0, 5.0):
        with torch.no_grad():
            for (name, parameter), first in zip(step.parameters.named, start, strict=True):
                parameter.copy_(0 * first if name.endswith("lora_B.weight") else first)  # no effect yet
        run = with_objective(step, **SUBJECT, output_preservation=weight)
        for _ in range(4):
            run.run()
        moved[weight] = sum(term.loss_fn(list(term.samples), [u]).item() for u in (0.2, 0.5, 0.8))
    assert 0 < moved[5.0] < 0.5 * moved[0.0]


def test_gradients_of_two_processes_add_up_to_the_whole_step(data, class_images, tmp_path):
    changes = {"class_images": str(class_images), "caption_use": {"caption_dropout": 0.3}}
    step = training_step(tmp_path, data, **SUBJECT, **changes, objective=STRATA)
    samples = batch_sampler.step_samples(1, 4, step.session.train_set.caption_choices, 0)
    values = []
    for own in (samples, batch_sampler.shard(samples, 0, 2), batch_sampler.shard(samples, 1, 2)):
        loss = float(step.compute_gradients(own))
        values.append([torch.tensor(loss), *(g.clone() for _, g in step.parameters.gradient_views())])
        step.parameters.zero_gradients()
    for whole, first, second in zip(*values, strict=True):
        assert torch.allclose(whole, (first + second) / 2, atol=1e-5)


def test_output_preservation_without_any_trigger_is_refused(class_images, tmp_path):
    changes = {**SUBJECT, "objective": {"output_preservation": 1}}
    file = runs.make_recipe(tmp_path / "r.yaml", "tiny-dit", class_images, tmp_path / "run", **changes)
    with pytest.raises(ConfigError, match="needs captions with the trigger 'sks', and no image has one"):
        run_plan.plan_training(recipes.load_recipe(file), print)


def test_stratified_timesteps_need_more_than_one_image(data, tmp_path):
    changes = {"train": {"steps": 2, "batch_size": 1}, "objective": {"stratified_timesteps": True}}
    file = runs.make_recipe(tmp_path / "r.yaml", "tiny-dit", data, tmp_path / "run", **changes)
    with pytest.raises(ConfigError, match="a step has one"):
        runs.train(file)
    regularization.check_stratified_batch(recipes.load_recipe(file), num_processes=2)


OBJECTIVES: dict[str, tuple[str, dict[str, Any]]] = {
    "class": (
        "tiny-unet",
        {
            "weighting": "min_snr",
            "min_snr_gamma": 3.0,
            "noise_offset": 0.05,
            "huber": {},
        },
    ),
    "strata": (
        "tiny-dit",
        {
            "timesteps": "mode",
            "stratified_timesteps": True,
            "weighting": "cosmap",
            "shift": 2.0,
            "output_preservation": 1.0,
        },
    ),
    "mask": (
        "tiny-dit",
        {"masked_loss": {"output_preservation": 0.5, "gray_unmasked": True}, "weighting": "sigma_sqrt"},
    ),
}


OPTIMIZERS: dict[str, dict[str, Any]] = {
    "class": {"lr": 1e-3, "schedule": "cosine_restarts", "min_lr_ratio": 0.1, "warmup": 0.5},
    "strata": {"lr": 1e-2, "name": "schedulefree_adamw"},
    "mask": {"lr": 1e-3, "name": "muon", "schedule": "rex"},
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_killed_run_resumes_in_the_same_bytes(name, data, class_images, tmp_path):
    base, objective = OBJECTIVES[name]
    changes: dict[str, Any] = {"objective": objective, "optimizer": OPTIMIZERS[name], **SUBJECT}
    changes["train"] = {"steps": 2, "batch_size": 2, "save_every": 1, "precision": "fp32"}
    if name == "mask":
        changes["train"]["ema_decay"] = 0.9
    if name == "class":
        changes |= {"class_images": str(class_images), "caption_use": {"caption_dropout": 0.3}}
    whole = runs.train(runs.make_recipe(tmp_path / "a.yaml", base, data, tmp_path / "a", **changes))
    file = runs.make_recipe(tmp_path / "b.yaml", base, data, tmp_path / "b", **changes)
    with runs.killed_at(1):
        runs.train(file)
    resumed = runs.train(file)
    assert (resumed / "adapter.safetensors").read_bytes() == (whole / "adapter.safetensors").read_bytes()
    rows = storage.read_jsonl(whole / "metrics.jsonl")
    assert all(0 < row["loss"] < 1e6 for row in rows)
    assert all(row["grad_norm"] > 0 for row in rows)
