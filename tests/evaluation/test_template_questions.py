"""Questions of a prompt set: a sentence for every template, about the class noun, never the trigger."""

from __future__ import annotations

import pytest

from lorakit.core.words import has_word
from lorakit.data.subjects import Subject
from lorakit.evaluation.prompt_set import make_prompt_set


@pytest.mark.parametrize("noun", ["dog", "owl", "teapot", "cuckoo clock"])
def test_every_prompt_asks_for_its_subject_and_for_what_the_template_adds(noun):
    for prompt in make_prompt_set([], Subject("sks", noun), num_prompts=60, num_others=12):
        first, second = prompt.questions
        texts = f"{first.text} {second.text}"
        assert not has_word(texts, "sks")
        assert "{" not in texts
        for question in prompt.questions:
            assert question.text.startswith(("Is ", "Does "))
            assert question.text.endswith("?")
            assert "  " not in question.text
            assert " , " not in question.text
        if prompt.kind == "unrelated":
            assert first.text == f"Does this image show {prompt.prompt}?"
            assert (second.text.split()[0:2], second.answer) == (["Is", "there"], "no")
        else:
            assert noun in first.text
            assert first.answer == second.answer == "yes"
            assert (f"the {noun}" in second.text) != second.text.startswith("Is this ")


@pytest.mark.parametrize(
    ("prompt", "question"),
    [
        ("a sks dog on a sandy beach", "Is the dog on a sandy beach?"),
        ("a sks dog wearing a straw hat", "Is the dog wearing a straw hat?"),
        ("a watercolour painting of a sks dog", "Is this a watercolour painting?"),
        ("a stained glass window showing a sks dog", "Is this a stained glass window?"),
        ("a sks dog from the side", "Is the dog seen from the side?"),
        ("a close-up of a sks dog", "Is this a close-up of one thing?"),
    ],
)
def test_questions_are_in_plain_words(prompt, question):
    prompts = {p.prompt: p for p in make_prompt_set([], Subject("sks", "dog"), num_prompts=60)}
    assert prompts[prompt].questions[1].text == question
