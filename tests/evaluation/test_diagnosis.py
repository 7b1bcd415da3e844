"""The verdict on simulated evaluations: each planted fault is named in the first sentence with the next step,
and a sound run, whatever its kind of dataset, is good news."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from lorakit.core.statistics import Interval
from lorakit.evaluation.diagnosis import Verdict, diagnose
from lorakit.evaluation.run_facts import CaptionMatch, ConceptFacts, RunFacts, SubjectGroups
from lorakit.evaluation.score_table import Evaluation
from lorakit.evaluation.select import select_checkpoint
from tests.evaluation.simulated import Truth, overfitting_run, simulate


def concept(count: int = 12, **changes) -> ConceptFacts:
    return replace(ConceptFacts("photos", "sks", count, count, count, count), **changes)


def match(share: float, half_width: float = 0.2, reach: float = 0.12) -> CaptionMatch:
    interval = Interval(share, share - half_width, share + half_width, 12)
    return CaptionMatch(interval, 12, share * reach, reach, ("photos/03.png", "photos/07.png"))


FACTS = RunFacts(
    num_images=12,
    concepts=(concept(),),
    method="lora",
    rank=16,
    alpha=16,
    optimizer="adamw8bit",
    lr=1e-4,
    num_steps=1200,
    epochs=100,
    caption_match=match(0.8),
)
SETTLED = (Truth(100, 0.4, 1.0), Truth(200, 0.75, 1.0), Truth(300, 0.76, 1.0), Truth(400, 0.76, 1.0))
RISING = (Truth(100, 0.1, 1.0), Truth(200, 0.25, 1.0), Truth(300, 0.4, 1.0))
FLAT = (Truth(100, 0.0, 1.0, drift=0.0), Truth(200, 0.0, 1.0, drift=0.0))


def verdict_of(evaluation: Evaluation, facts: RunFacts | None = FACTS) -> Verdict:
    evaluation.facts = facts
    return diagnose(evaluation, select_checkpoint(evaluation))


def verdict(truths: Sequence[Truth], facts: RunFacts | None = FACTS, **options) -> Verdict:
    return verdict_of(simulate(truths, **options), facts)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    "facts",
    [
        FACTS,
        replace(FACTS, num_images=4, concepts=(concept(4),), caption_match=None),
        replace(FACTS, concepts=(concept(12, num_distinct_captions=1),), caption_match=None),
        replace(FACTS, concepts=(concept(30, trigger=None, num_with_trigger=0),), caption_match=match(0.5)),
        replace(FACTS, num_images=60, concepts=(concept(60),), caption_match=match(0.62)),
        replace(FACTS, concepts=(concept(12), concept(40, trigger=None, num_with_trigger=0))),
        replace(FACTS, method="lokr", rank=1, lr=1e-3),
        replace(FACTS, caption_match=match(0.1, reach=0.01)),
        RunFacts(unknown=("the dataset cannot be read",)),
    ],
    ids=["ordinary", "small", "one-caption", "style", "diverse", "with-others", "lokr", "alike", "unknown"],
)
def test_a_sound_run_is_good_news_whatever_its_dataset(facts, seed):
    result = verdict(SETTLED, facts, seed=seed)
    assert result.headline.startswith("Use step ")
    assert result.headline.partition(":")[0].removesuffix(".").endswith("at strength 1")
    assert result.causes == ()
    assert result.good is True
    assert "0 % is the base model" in result.details


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("share", "adherence"), [(0.0, 0.3), (-0.15, 0.5), (0.2, 0.7)], ids=["none", "negative", "weak"]
)
def test_captions_of_other_images_are_named_before_their_consequences(share, adherence, seed):
    facts = replace(FACTS, caption_match=match(share))
    result = verdict([Truth(100, 0.5, adherence), Truth(200, 0.8, adherence)], facts, seed=seed)
    assert result.headline == "The captions do not match their images: check them, then train again."
    assert "photos/03.png" in result.details
    assert result.good is not True


def test_captions_that_match_weakly_are_no_cause_while_prompts_are_followed():
    assert verdict(SETTLED, replace(FACTS, caption_match=match(0.3, 0.4))).causes == ()


@pytest.mark.parametrize(("copies", "words"), [(1, "one image only"), (10, "10 copies of one image only")])
def test_a_single_training_image_is_named(copies, words):
    one = concept(copies, num_distinct=1)
    facts = replace(FACTS, num_images=1, concepts=(one, concept(40, trigger=None)), caption_match=None)
    result = verdict(SETTLED, facts)
    assert result.headline.startswith(f"The adapter was trained on {words}: add ")
    assert result.good is None


@pytest.mark.parametrize("folders", [1, 2])
def test_a_trigger_word_in_no_caption_is_named(folders):
    facts = replace(FACTS, concepts=(concept(num_with_trigger=0),) * folders)
    result = verdict(SETTLED, facts)
    assert result.headline.startswith("The trigger word 'sks' is in no caption: add it")
    assert result.good is None


def test_a_trigger_word_in_the_captions_of_one_of_two_folders_is_enough():
    facts = replace(FACTS, concepts=(concept(), concept(num_with_trigger=0)))
    assert verdict(SETTLED, facts).causes == ()


def with_two_groups(between: float, folders: tuple[str, str] | None = None) -> Verdict:
    """The verdict on two groups of references, 0.7 alike within and `between` across; the base model: 0.4."""
    evaluation = simulate(SETTLED)
    table = evaluation.references
    similarity = table.similarity.copy()
    half = len(similarity) // 2
    similarity[:half, half:] = similarity[half:, :half] = between
    evaluation.references = replace(table, similarity=similarity)
    names = [f"photos/{i}.png" for i in range(2 * half)]
    groups = SubjectGroups("sks", (tuple(names[:half]), tuple(names[half:])), 0.4, folders)
    return verdict_of(evaluation, replace(FACTS, subject_groups=groups))


@pytest.mark.parametrize("between", [0.3, 0.42])
@pytest.mark.parametrize("folders", [None, ("rex", "bella")])
def test_two_subjects_under_one_trigger_word_are_named(folders, between):
    result = with_two_groups(between, folders)
    assert result.headline.startswith("Two different subjects share the trigger word 'sks': give each")
    assert ("rex and bella" if folders else "photos/0.png and photos/4.png") in result.details


@pytest.mark.parametrize("between", [0.5, 0.65])
def test_two_surroundings_of_one_subject_are_not_two_subjects(between):
    assert "two_subjects" not in [cause.name for cause in with_two_groups(between).causes]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lr": 1e-6}, "raise the learning rate (it is 1e-06; 0.0001 is usual)"),
        ({"lr": 2e-5, "alpha": 1.0}, "times alpha / rank 0.0625"),
        ({"lr": 1e-4, "epochs": 5.0, "num_steps": 60}, "train longer (60 steps, 5 times each image)"),
        ({"lr": 3e-5, "epochs": 2.0, "num_steps": 30}, "train longer"),
        ({"lr": None, "epochs": None, "num_steps": None}, "train longer"),
    ],
)
def test_without_an_effect_what_falls_furthest_short_is_named(changes, words):
    result = verdict(FLAT, replace(FACTS, **changes))
    assert words in result.headline
    assert result.good is None


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("lr", [1e-4, 1e-3])
def test_a_run_that_stopped_while_it_learned_is_to_be_trained_longer(lr, seed):
    result = verdict(RISING, replace(FACTS, lr=lr), seed=seed)
    assert result.headline.startswith("Train longer: ")
    assert "Until then use step 300 at strength 1: fidelity" in result.details
    assert result.good is None
    assert result.next_step.startswith("train longer, for instance `lorakit train RUN --extend ")


@pytest.mark.parametrize("strength", [1.5, 2.0])
def test_a_strength_above_one_is_the_cause_if_its_images_are_spoiled(strength):
    evaluation = simulate([Truth(400, 0.8, 0.4, drift=0.6)])
    evaluation.adapter_variants[0].strength = strength
    result = verdict_of(evaluation)
    assert result.headline.startswith(
        "Lower the strength: the adapter was trained at 1 and evaluated only at"
    )
    assert f" {strength:g}, where it " in result.headline
    assert result.good is False


def test_a_lower_strength_that_is_selected_is_named_with_its_reason():
    evaluation = simulate([Truth(100, 0.8, 1.0), Truth(101, 0.9, 0.4, drift=0.6)])
    low, full = evaluation.adapter_variants
    low.name, low.strength, full.step = "step-100@0.5", 0.5, 100
    result = verdict_of(evaluation)
    assert result.headline.startswith("Use step 100 at strength 0.5: a higher strength ")
    assert result.good is True


@pytest.mark.parametrize("rank", [1, 2])
def test_a_tiny_rank_is_named_if_fidelity_stops_far_below_true_images(rank):
    truths = (Truth(100, 0.3, 1.0), Truth(200, 0.45, 1.0), Truth(300, 0.45, 1.0), Truth(400, 0.45, 1.0))
    result = verdict(truths, replace(FACTS, rank=rank, alpha=rank))
    assert result.headline.startswith(f"The rank is too low: with rank {rank} fidelity stops at 4")
    assert result.good is None
    assert verdict(truths, replace(FACTS, rank=8)).causes == ()
    high = [replace(truth, fidelity=2 * truth.fidelity) for truth in truths]
    assert verdict(high, replace(FACTS, rank=rank, alpha=rank)).causes == ()


@pytest.mark.parametrize("seed", range(2))
def test_an_earlier_checkpoint_is_recommended_with_the_fault_of_the_later_ones(seed):
    result = verdict(overfitting_run(), seed=seed)
    assert result.headline.startswith("Use step ")
    assert ": a later checkpoint " in result.headline
    assert result.good is True


@pytest.mark.parametrize("count", [1, 2])
def test_copies_in_every_checkpoint_are_bad_news(count):
    truths = [Truth(100 * n, 0.9, 1.0, copies=0.8) for n in range(1, count + 1)]
    result = verdict(truths)
    assert "copies training images" in result.headline
    assert "train fewer steps" in result.headline
    assert result.good is False


@pytest.mark.parametrize(
    ("truth", "words"),
    [
        (Truth(100, 0.8, 0.2), "ignores the prompts"),
        (Truth(100, 0.8, 1.0, drift=0.7), "changes prompts without the subject"),
        (Truth(100, 0.8, 1.0, diversity=0.2), "the same image again and again"),
    ],
)
def test_damage_without_a_cause_in_the_data_is_named_by_what_is_seen(truth, words):
    result = verdict([truth])
    assert words in result.headline
    assert result.good is False


def test_what_is_unknown_is_neither_good_nor_bad():
    evaluation = simulate(SETTLED)
    evaluation.references = None
    for variant in evaluation.variants:
        variant.scores.pop("dino_i")
        variant.reference_similarity.clear()
    result = verdict_of(evaluation)
    assert result.good is None
    assert "reference images" in result.text
    assert "--references" in result.text


def test_few_prompts_and_no_base_model_are_neither_good_nor_bad():
    assert verdict(SETTLED, subject=4).good is None
    evaluation = simulate(SETTLED)
    evaluation.variants = evaluation.variants[1:]
    result = verdict_of(evaluation)
    assert result.good is None
    assert "--base-images" in result.headline
