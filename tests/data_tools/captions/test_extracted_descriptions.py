"""Tests of the description within an answer: reasoning, chat markup, JSON, Markdown, introductions."""

from __future__ import annotations

import contextlib
import json
import time

import pytest

from data_tools.captions.answers import UnusableAnswer, extract_description
from tests.data_tools.captions import answer_samples
from tests.data_tools.captions.answer_samples import DOG

WRAPPED = answer_samples.WRAPPED | {
    "think": f"<think>The user wants a caption.\nIt is a dog.</think>\n\n{DOG}",
    "think without its start": f"The user wants a caption. It is a dog.\n</think>\n{DOG}",
    "thinking": f"<thinking>a dog?</thinking>{DOG}",
    "brackets": f"[THINK]a dog?[/THINK]{DOG}",
    "kimi": f"◁think▷a dog?◁/think▷{DOG}",
    "two thoughts": f"<think>one</think><think>two</think>{DOG}",
    "harmony": (
        f"<|channel|>analysis<|message|>A dog.<|end|><|start|>assistant<|channel|>final<|message|>{DOG}"
    ),
    "harmony decoded": f"analysisIt is a dog.assistantfinal{DOG}",
    "chatml": f"<|im_start|>assistant\n{DOG}<|im_end|>",
    "chatml that goes on": f"{DOG}<|im_end|>\n<|im_start|>user\nAnother one",
    "llama": f"<|start_header_id|>assistant<|end_header_id|>\n\n{DOG}<|eot_id|>",
    "gemma": f"<start_of_turn>model\n{DOG}<end_of_turn>",
    "mistral": f"[INST] describe [/INST] ASSISTANT: {DOG}</s>",
    "vicuna": f"USER: describe\nASSISTANT: {DOG}",
    "deepseek": f"{DOG}<｜end▁of▁sentence｜>",
    "florence": f"<MORE_DETAILED_CAPTION>{DOG}</s>",
    "json": json.dumps({"caption": DOG}),
    "json block": f'```json\n{{"description": "{DOG}", "confidence": 0.9}}\n```',
    "json nested": json.dumps({"result": {"captions": [DOG, "Another."]}}),
    "json with another key": json.dumps({"detailed_caption": DOG, "tags": ["x"]}),
    "json with one key": json.dumps({"dog.jpg": DOG}),
    "json list": json.dumps([{"caption": DOG}]),
    "text block": f"```\n{DOG}\n```",
    "bold label": f'**Caption:** "{DOG}"',
    "label": f"Caption: {DOG}",
    "numbered label": f"Caption 1: {DOG}",
    "heading": f"## Image Description\n\n**Description:** {DOG}",
    "quotes": f"“{DOG}”",
    "emphasis": "A **brown** dog sits on the *grass*.",
    "bullet": f"- {DOG}",
    "introduction": f"Sure! Here's a caption for the image:\n\n{DOG}",
    "another introduction": f"Here is a detailed description of the image: {DOG}",
    "affirmation": f"Certainly! {DOG}",
    "offer at the end": f"{DOG}\n\nLet me know if you want changes!",
    "options": f"Here are three captions:\n\n1. {DOG}\n2. A dog.\n3. A pet.",
    "html": f"<p>{DOG}</p>",
    "entities": DOG.replace("brown dog", "brown &quot;dog&quot;").replace("&quot;", ""),
    "answer tag": f"<answer>{DOG}</answer>",
}


@pytest.mark.parametrize("name", answer_samples.UNUSABLE)
def test_an_answer_that_describes_nothing_is_unusable(name: str) -> None:
    with pytest.raises(UnusableAnswer):
        extract_description(answer_samples.UNUSABLE[name])


def test_a_prompt_that_is_repeated_is_removed() -> None:
    prompt = "Describe this image in one sentence."
    assert extract_description(f"{prompt}\n{DOG}", prompt) == (DOG, ["prompt"])
    assert extract_description(prompt, prompt) == (prompt, [])


@pytest.mark.parametrize("unit", ["<a>", "\n", '"', "okay, ", " #a"])
def test_a_hostile_answer_is_read_in_time(unit: str) -> None:
    begin = time.process_time()
    with contextlib.suppress(UnusableAnswer):
        extract_description((unit * 20_000)[:20_000])
    assert time.process_time() - begin < 5


@pytest.mark.parametrize("name", WRAPPED)
def test_only_the_description_remains(name: str) -> None:
    description, removed = extract_description(WRAPPED[name])
    if name == "heading":
        description = description.split("\n")[-1].removeprefix("Description: ")
    assert " ".join(description.split()) == DOG
    assert bool(removed) == (WRAPPED[name] != DOG)


@pytest.mark.parametrize(
    "text",
    [
        DOG,
        'A sign says "Caption: 50 % off" above a dog.',
        "1girl, solo, blue eyes, <lora> cosplay",
        "a dog & a cat, 5 < 6, [brackets] and {braces}",
        "Ratio 16:9, a * b, snake_case_name and __init__",
        "A man asks: here are the keys?",
        "two dogs, 1. a brown one, 2. a white one",
        '"Hello" is written on a wall, beside "World"',
    ],
)
def test_a_plain_description_is_not_changed(text: str) -> None:
    assert extract_description(text) == (text, [])


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        ("<think>The user wants a caption. It is a", "reasoning_only", "--max-tokens"),
        ("<think>It is a dog.</think>", "reasoning_only", "--max-tokens"),
        ("<|channel|>analysis<|message|>It is a dog", "reasoning_only", "--max-tokens"),
        ("[THINK]hm", "reasoning_only", "--max-tokens"),
        ('{"tags": {"a": 1}, "score": 3}', "invalid_response", "tags, score"),
        ('```json\n{"caption": "A brown dog', "invalid_response", "cut off"),
        ("{}", "invalid_response", "empty JSON"),
    ],
)
def test_an_answer_without_a_description_is_named(answer: str, code: str, words: str) -> None:
    with pytest.raises(UnusableAnswer, match=words.replace("-", r"\-")) as caught:
        extract_description(answer)
    assert caught.value.code == code
