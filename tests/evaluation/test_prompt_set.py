"""A prompt set has the prompts of its kinds, and prefers those that the captions do not contain."""

from __future__ import annotations

from collections import Counter

import pytest

from lorakit.core.errors import ConfigError
from lorakit.core.words import has_word
from lorakit.data.prompts import load_prompts
from lorakit.data.subjects import Subject
from lorakit.evaluation.prompt_set import make_prompt_set, make_prompt_sets, write_prompt_set

DOG = Subject("sks", "dog")


def test_a_prompt_set_has_a_fixed_number_of_each_kind_and_role():
    prompts = make_prompt_set([], DOG)
    kinds = Counter(prompt.kind for prompt in prompts)
    assert kinds == {
        "recontextualization": 10,
        "property": 5,
        "style": 5,
        "view": 4,
        "class": 6,
        "unrelated": 6,
    }
    roles = Counter(prompt.role(["sks"]) for prompt in prompts)
    assert roles == {"subject": 24, "class": 6, "unrelated": 6}
    assert len({prompt.id for prompt in prompts}) == len({prompt.prompt for prompt in prompts}) == 36


def test_only_prompts_of_the_subject_hold_the_trigger_and_no_score_text_does():
    for prompt in make_prompt_set([], DOG):
        assert has_word(prompt.prompt, "sks") == (prompt.role([]) == "subject")
        assert not has_word(prompt.score_text, "sks")
        assert has_word(prompt.prompt, "dog") == (prompt.kind != "unrelated")
        assert "{" not in prompt.prompt + prompt.score_text


def test_places_and_properties_in_the_captions_are_avoided():
    captions = ["a sks dog on the beach", "a sks dog in the snow wearing a hat", "sks dog, watercolour"]
    before, after = ({p.prompt for p in make_prompt_set(some, DOG)} for some in ([], captions))
    for word in ("beach", "snow", "hat", "watercolour"):
        assert any(has_word(text, word) for text in before)
        assert not any(has_word(text, word) for text in after if has_word(text, "sks"))


def test_things_get_materials_and_living_beings_get_clothes():
    thing, animal = (
        [p.prompt for p in make_prompt_set([], s) if p.kind == "property"]
        for s in (Subject("sks", "teapot"), DOG)
    )
    assert any("made of" in text for text in thing)
    assert any("wearing" in text for text in animal)
    assert not any("wearing" in text for text in thing)


def test_articles_fit_and_a_subject_needs_no_trigger():
    texts = [p.prompt for p in make_prompt_set([], Subject("ohwx", "owl"))]
    assert any(text.startswith("an ohwx owl") for text in texts)
    plain = make_prompt_set([], Subject(None, "owl"))
    assert any(p.prompt.startswith("an owl") for p in plain)
    assert all(p.prompt == p.score_text for p in plain)


CAT, OTHER_DOG = Subject("ohwx", "cat"), Subject("zwx", "dog")


@pytest.mark.parametrize(
    ("subjects", "nouns"),
    [([DOG], 1), ([DOG, CAT], 2), ([DOG, OTHER_DOG], 1), ([DOG, CAT, OTHER_DOG, Subject()], 2)],
)
def test_a_prompt_set_has_prompts_of_every_subject_and_each_other_prompt_once(subjects, nouns):
    prompts = make_prompt_sets({s: [] for s in subjects}, num_prompts=8, num_others=2)
    triggers = [s.trigger for s in subjects if s.trigger]
    for trigger in triggers:
        assert sum(has_word(p.prompt, trigger) for p in prompts) == 8
    roles = Counter(prompt.role(triggers) for prompt in prompts)
    assert roles == {"subject": 8 * len(triggers), "class": 2 * nouns, "unrelated": 2}
    assert len({p.id for p in prompts}) == len({p.prompt for p in prompts}) == len(prompts)


def test_prompts_of_subjects_need_a_class_noun():
    for subjects in ([], [Subject()], [DOG, Subject("zwx")]):
        with pytest.raises(ConfigError, match="class noun"):
            make_prompt_sets({s: [] for s in subjects})


def test_a_prompt_set_is_written_as_a_prompt_file_and_never_over_one(tmp_path):
    prompts = make_prompt_set(["a sks dog"], DOG, num_prompts=12, num_others=2)
    path = write_prompt_set(tmp_path / "p.jsonl", prompts)
    assert load_prompts(path) == prompts
    assert len(prompts) == 16
    path.write_text(path.read_text() + "\n")
    with pytest.raises(ConfigError, match="exists"):
        write_prompt_set(path, prompts)


@pytest.mark.parametrize(
    ("subject", "count", "message"), [(Subject("sks"), 24, "class noun"), (DOG, 3, "too few")]
)
def test_a_missing_class_noun_or_too_few_prompts_is_an_error(subject, count, message):
    with pytest.raises(ConfigError, match=message):
        make_prompt_set([], subject, num_prompts=count)
