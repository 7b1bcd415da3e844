"""The syntax of other tools in captions and prompts; plain prose with the same characters is none."""

from __future__ import annotations

import pytest

from lorakit.core import prompt_syntax
from lorakit.core.prompt_syntax import PromptOption, find_syntax, split_options, unescape_parentheses


def kinds(text: str) -> set[str]:
    return {use.kind.code for use in find_syntax(text)}


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("a dog --n blurry --w 512 --h 768 --d 1 --l 7.5 --s 28", "prompt_options"),
        ("a dog --am 0.8,1", "prompt_options"),
        ("a dog --fn x --cn pose.png", "prompt_options"),
        ("a cat —w 512", "prompt_options"),  # two dashes that an editor has joined
        ('--prompt "a dog" --steps 20', "prompt_options"),
        ("a dog --ar 3:2 --v 6", "prompt_options"),
        ("a photo of [trigger] on grass", "placeholder"),
        ("{trigger} dog", "placeholder"),
        ("a photo of {}", "placeholder"),
        ("[name], [filewords]", "placeholder"),
        ("a {red|blue} car", "wildcard"),
        ("a {2$$red|blue|green} car", "wildcard"),
        ("a {red, blue, green} car", "wildcard"),
        ("__animal__ in a field", "wildcard"),
        ("__colors/warm__ car", "wildcard"),
        ("a (red:1.3) car", "attention_weight"),
        ("(worst quality:2)", "attention_weight"),
        ("(bad hands:-1.5)", "attention_weight"),
        ("(red hat: 1.3)", "attention_weight"),
        ("((masterpiece)), best", "attention_weight"),
        ("[[blurry]] background", "attention_weight"),
        ("1girl, (masterpiece), solo", "attention_weight"),
        ("1girl, [blurry], solo", "attention_weight"),
        ("a [cat:dog:0.5] on grass", "attention_weight"),
        ("a [cat|dog] on grass", "attention_weight"),
        (r"(sword \(weapon\):1.2), girl", "attention_weight"),
        ("(red hat)1.3 man", "attention_weight"),
        ("(red hat)++ man", "attention_weight"),
        ("<lora:style:0.8> a dog", "network_tag"),
        ("a dog <hypernet:x:1>", "network_tag"),
        ("<lyco:Style v2:0.5>, dog", "network_tag"),
        ("a cat BREAK a dog", "prompt_keyword"),
        ("a cat AND a dog", "prompt_keyword"),
        ("a cat, ADDCOMM a dog", "prompt_keyword"),
        ("embedding:bad-hands a cat", "embedding_name"),
        ("(embedding:x:1.2)", "embedding_name"),
    ],
)
def test_syntax_of_other_tools_is_found(text: str, kind: str) -> None:
    assert kind in kinds(text)


@pytest.mark.parametrize(
    "text",
    [
        "a man (left) and a woman (right)",
        "an aspect ratio of 3:2, seen at 10:30",
        "a clock (showing 10:30) on a wall",
        "a scale model (scale 1:24) of a car",
        "a page with the verse [Genesis 1:3]",
        "a page with [illegible] writing",
        "a dog -- brown and white -- on grass",
        "a dog --brown and white-- sits",
        "a well--known place",
        'a sign that says "BREAK", and one with "(a:1.2)"',
        "a sign LUNCH BREAK TIME over a door",
        "a ROCK AND ROLL poster",
        "a book about C++ and (OOP)",
        r"saber \(fate\), sword, blue dress",
        "a t-shirt with {hello}",
        "the file name_with_underscores beside __init__",
        "word embedding: a vector",
        "portrait (oil on canvas), 1890",
        "a man [seen from behind] walking",
        "x_x, :), >:(, ^_^, (9), (o)_(o), 1girl",
        "a cat (price: 3.50)",
        "I <3 hearts, love > hate",
        "-5 degrees, --5 degrees",
        "the equation f(x) = (a:b)",
        "a photo, taken in [Berlin], Germany. It rains.",
        "a trigger on a gun, [trig] on a chart",
        "",
    ],
)
def test_plain_prose_is_no_syntax(text: str) -> None:
    assert kinds(text) == set()


@pytest.mark.parametrize(
    "kind", [kind for kind in prompt_syntax.KINDS if kind.edit], ids=lambda kind: kind.code
)
def test_the_edit_of_each_kind_removes_it_and_nothing_else(kind: prompt_syntax.SyntaxKind) -> None:
    from data_tools.captions.edits import apply_edits

    examples = {
        "prompt_options": ("a dog --n blurry --w 512", "a dog"),
        "attention_weight": ("a (red:1.3) car, ((best)), [[new]]", "a red car, best, new"),
        "network_tag": ("a dog <lora:x:1>, on grass", "a dog on grass"),
        "prompt_keyword": ("a cat BREAK a dog", "a cat a dog"),
    }
    text, edited = examples[kind.code]
    assert kind.code in kinds(text)
    assert apply_edits(text, [kind.edit]) == edited
    assert kinds(edited) == set()


@pytest.mark.parametrize(
    ("text", "prompt", "options"),
    [
        ("a dog --n bad, worse --d 3", "a dog", [("n", "bad, worse"), ("d", "3")]),
        ("a dog, --W 512,--h=64", "a dog", [("w", "512"), ("h", "64")]),
        (
            '--prompt "a dog" --negative_prompt "blurry"',
            "",
            [("prompt", "a dog"), ("negative_prompt", "blurry")],
        ),
        ("a dog -- brown", "a dog -- brown", []),
        ("a well--known dog", "a well--known dog", []),
    ],
)
def test_a_prompt_is_split_from_its_options(text: str, prompt: str, options: list[tuple[str, str]]) -> None:
    assert split_options(text) == (prompt, [PromptOption(*option) for option in options])


@pytest.mark.parametrize(
    ("text", "plain"),
    [(r"saber \(fate\)", "saber (fate)"), (r"\[x\] \{y\}", "[x] {y}"), (r"C:\dir (x)", r"C:\dir (x)")],
)
def test_escaped_brackets_become_plain(text: str, plain: str) -> None:
    assert unescape_parentheses(text) == plain


def test_a_summary_counts_images_and_names_examples() -> None:
    texts = [("a.png", "(x y:1.2)"), ("b.png", "((very nice))"), ("b.png", "(z:1.3)"), ("c.png", "a dog")]
    (summary,) = prompt_syntax.summarize_syntax(texts)
    assert (summary.kind.code, summary.files) == ("attention_weight", ("a.png", "b.png"))
    assert "2 images have attention syntax" in summary.message
    assert "'(x y:1.2)'" in summary.message
