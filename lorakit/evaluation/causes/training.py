"""Causes in the settings and in the length of the training, and damage to the images."""

from __future__ import annotations

from dataclasses import dataclass

from lorakit.evaluation.alarms import AlarmName
from lorakit.evaluation.causes.case import Case, Cause, as_sentence, find_alarm, strength_of
from lorakit.evaluation.report.number_format import (
    format_count,
    format_percent,
    format_percent_interval,
    join_names,
)
from lorakit.evaluation.run_facts import RunFacts

USUAL_LR, USUAL_EPOCHS = 1e-4, 100.0
"""A published recipe's learning rate of Adam for adapters (1e-5 to 1e-3), and its epochs (50 to 300)."""
MIN_SHORTAGE = 3.0  # times below the usual from which a learning rate is too small
USUAL_RANK = 16
MAX_TINY_RANK = 2
MIN_HIGH_STRENGTH = 1.3
LOW_FIDELITY = 0.75  # fidelity that a rank of 16 usually exceeds
LOW_RANK_METHODS = ("lora", "rslora", "dora")


def nothing_learned(case: Case) -> Cause | None:
    """The last checkpoint has no effect beyond chance: too small a learning rate, or too few steps."""
    last = case.last
    if last is None:
        return None
    if no_effect := find_alarm(last, "no_effect"):
        return _more_training(case.facts, "hardly changes the images", as_sentence(no_effect.message))
    gains = [gain for candidate in case.candidates if (gain := case.fidelity_gain(candidate))]
    if not gains or any(not gain.ci_low <= 0 for gain in gains):
        return None
    low, mean, high = (100 * value for value in (gains[-1].ci_low, gains[-1].mean, gains[-1].ci_high))
    evidence = (
        f"The similarity to the reference images rises by {mean:.1f} [{low:.1f}, {high:.1f}] (100 x cosine) "
        "up to the last checkpoint."
    )
    return _more_training(case.facts, "has learned nothing beyond chance", evidence)


def _more_training(facts: RunFacts, result: str, evidence: str) -> Cause:
    """Name what falls further short of the usual: the learning rate, or the number of epochs."""
    if facts.lr is not None and facts.method != "none":
        ratio = min(1.0, (facts.alpha or 1) / (facts.rank or 1)) if facts.method in LOW_RANK_METHODS else 1.0
        shortage = USUAL_LR / (facts.lr * ratio)
        if shortage > MIN_SHORTAGE and shortage > USUAL_EPOCHS / (facts.epochs or USUAL_EPOCHS):
            settings = f"it is {facts.lr:g}"
            settings += f" times alpha / rank {ratio:.3g}" if ratio < 1 else ""
            return Cause(
                "learning_rate_too_small",
                f"The adapter {result}: raise the learning rate ({settings}; {USUAL_LR:g} is usual), then "
                "train again.",
                "raise the learning rate, then train again",
                evidence,
            )
    length = f" ({_length(facts)})" if facts.num_steps else ""
    return Cause(
        "stopped_too_early",
        f"The adapter {result}: train longer{length}, or with a higher learning rate.",
        "train longer",
        evidence,
    )


def _length(facts: RunFacts) -> str:
    steps = format_count(facts.num_steps or 0, "step")
    return f"{steps}, {facts.epochs:.3g} times each image" if facts.epochs else steps


def still_rising(case: Case) -> Cause | None:
    """Fidelity still rises at the last checkpoint."""
    if not case.is_rising or case.last is None:
        return None
    facts, reason = case.facts, "fidelity still rises at the last checkpoint"
    length = f", after {_length(facts)}" if facts.num_steps else ""
    evidence = f"Fidelity there: {format_percent_interval(case.last.fidelity)}{length}."
    if _has_tiny_rank(facts):
        step = f"train longer, or again with rank {USUAL_RANK}"
        sentence = (
            f"Train longer, or again with rank {USUAL_RANK}: {reason}, and rank {facts.rank} learns slowly."
        )
        return Cause("rank_too_low", sentence, step, evidence)
    longer = 2 * (case.last.variant.step or 0)
    step = f"train longer, for instance `lorakit train RUN --extend {longer}`"
    return Cause("stopped_too_early", f"Train longer: {reason}.", step, evidence)


def _has_tiny_rank(facts: RunFacts) -> bool:
    return facts.method in LOW_RANK_METHODS and facts.rank is not None and facts.rank <= MAX_TINY_RANK


def strength_too_high(case: Case) -> Cause | None:
    """An adapter is trained at strength 1, and was evaluated only far above."""
    lowest = min((strength_of(candidate) for candidate in case.candidates), default=1.0)
    if lowest < MIN_HIGH_STRENGTH:
        return None
    alarm = find_alarm(case.nearest)
    damage = f", where it {DAMAGES[alarm.name].verb}" if alarm and alarm.name in DAMAGES else ""
    adherence = case.nearest.prompt_adherence if case.nearest else None
    return Cause(
        "strength_too_high",
        f"Lower the strength: the adapter was trained at 1 and evaluated only at {lowest:g}{damage}; "
        "evaluate it with --strengths 0.7,1.",
        "evaluate it with --strengths 0.7,1",
        as_sentence(alarm.message) if alarm else f"Prompt adherence is {format_percent_interval(adherence)}.",
        is_damage=alarm is not None,
    )


def rank_too_low(case: Case) -> Cause | None:
    """Fidelity has stopped rising far below true images, nothing else is wrong, and the rank is tiny."""
    facts, selected = case.facts, case.selected
    if not _has_tiny_rank(facts):
        return None
    if selected is None or selected.fidelity is None or find_alarm(selected):
        return None
    if case.is_rising or not selected.fidelity.ci_high < LOW_FIDELITY:
        return None
    return Cause(
        "rank_too_low",
        f"The rank is too low: with rank {facts.rank} fidelity stops at "
        f"{format_percent(selected.fidelity.mean)}; train again with rank {USUAL_RANK}.",
        f"train again with rank {USUAL_RANK}",
        f"Fidelity is {format_percent_interval(selected.fidelity)} and no longer rises.",
    )


@dataclass(frozen=True)
class Damage:
    """The words for an alarm: `verb` continues "the adapter ..."."""

    verb: str
    next_step: str


DAMAGES: dict[AlarmName, Damage] = {
    "copied_images": Damage("copies training images", "train fewer steps, or add training images"),
    "memorization": Damage("memorizes the training images", "train fewer steps, or add training images"),
    "overfitting": Damage("overfits", "use an earlier checkpoint, or add training images"),
    "overcooked": Damage("overcooks the images", "use an earlier checkpoint or a lower strength"),
    "prompt_ignored": Damage("ignores the prompts", "train fewer steps, or with a lower learning rate"),
    "low_diversity": Damage("generates the same image again and again", "train fewer steps"),
    "drift": Damage(
        "changes prompts without the subject", "use a lower strength, or train with class images"
    ),
    "class_leakage": Damage(
        "shows the subject without its trigger word", "train with class images, or train fewer steps"
    ),
}


def damaged(case: Case) -> Cause | None:
    """Every variant is beyond the limit of an alarm."""
    least_bad = case.nearest
    alarm = find_alarm(least_bad)
    if least_bad is None or alarm is None or case.selected or alarm.name == "no_effect":
        return None
    damage = DAMAGES[alarm.name]
    shared = len(case.with_alarm(alarm.name)) == len(case.candidates)
    subject = (
        "The adapter" if shared else f"Every checkpoint has an alarm: the adapter of {least_bad.variant.name}"
    )
    names = [least_bad.variant.nearest_train_images.get(key) for key in alarm.examples]
    examples = join_names([name for name in dict.fromkeys(names) if name], 2)
    such_as = f" (such as {examples})" if examples and alarm.name == "copied_images" else ""
    return Cause(
        alarm.name,
        f"{subject} {damage.verb}{such_as}: {damage.next_step}.",
        damage.next_step,
        as_sentence(alarm.message),
        is_damage=True,
    )
