"""Yes/no questions for the prompts of a prompt set: is the subject there, and what the template adds."""

from __future__ import annotations

from lorakit.data.questions import Question

_EXCEPTIONS = {
    "{} with wings": "Does the {} have wings?",
    "{} running": "Is the {} running?",
    "{} as a statue of marble": "Is the {} a statue of marble?",
    "{} in a snow globe": "Is the {} inside a snow globe?",
    "{} from the side": "Is the {} seen from the side?",
    "{} through a window": "Is the {} seen through a window?",
    "{} reflected in a mirror": "Is the {} reflected in a mirror?",
    "a close-up of {}": "Is this a close-up of one thing?",
}
"""Templates whose question is not `Is the {} ...?` or `Is this ...?`."""
_LINKS = (" of ", " showing ")  # between a style and the subject


def template_questions(template: str, noun: str) -> tuple[Question, ...]:
    """Return the questions of a prompt from a template, in which "{}" is the subject: of the class `noun`.

    The place, property or view is asked about the subject, the style about the image.
    """
    return (Question(f"Is there {with_article(noun)}?"), Question(_about(template).replace("{}", noun)))


def unrelated_questions(text: str, noun: str) -> tuple[Question, ...]:
    """Return the questions of a prompt without the subject: its text, and that the subject is absent."""
    return (
        Question(f"Does this image show {text}?"),
        Question(f"Is there {with_article(noun)}?", "no"),
    )


def with_article(words: str) -> str:
    """Return the words with "a" or "an"."""
    return f"{'an' if words[:1].lower() in tuple('aeiou') else 'a'} {words}"


def _about(template: str) -> str:
    if template in _EXCEPTIONS:
        return _EXCEPTIONS[template]
    if template.startswith("{}"):
        return f"Is the {{}} {template.removeprefix('{}').lstrip(', ')}?"
    style = template.removesuffix("{}").rstrip()
    for link in _LINKS:
        style = style.removesuffix(link.rstrip())
    return f"Is this {style}?"
