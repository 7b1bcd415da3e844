"""A prompt set from a dataset's captions and the class noun.

It has the subject in new places, with new properties, in new styles and views; its class alone; and unrelated
things. Places and properties in the captions come last, because they test nothing new.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lorakit.core import storage
from lorakit.core.errors import ConfigError
from lorakit.core.words import has_word
from lorakit.data.prompts import Prompt, prompt_to_row
from lorakit.data.subjects import LIVING_CLASS_NOUNS, Subject
from lorakit.evaluation.template_questions import template_questions, unrelated_questions, with_article

SUBJECT_COUNT, OTHER_COUNT = 24, 6  # prompts of the subject; of its class, and as many of unrelated things
SHARES = {"recontextualization": 10, "property": 5, "style": 5, "view": 4}  # of the subject's prompts

# One template on a line: "{}" is the subject with its article; after the bar are words by which a caption
# shows that it is nothing new.
_PLACES = """
{} on a sandy beach|beach
{} in deep snow|snow
{} in a pine forest|forest
{} on a busy street|street
{} in a kitchen|kitchen
{} on a wooden table|table
{} in front of a mountain lake|lake mountain
{} in a desert at noon|desert
{} on the deck of a ship|ship
{} in a flower garden|garden
{} under a bridge at night|bridge
{} in an empty train|train
{} on a rooftop at sunset|roof sunset
{} in a library|library
{} beside a campfire|campfire fire
{} in shallow water|water
{} on green grass|grass
{} in a snow globe|globe
{} in the rain|rain
{} on a red carpet|carpet
""".strip().splitlines()
_THING_PROPERTIES = """
{} made of glass|glass
{} made of wood|wood
{} covered in moss|moss
{} painted bright yellow|yellow
{} made of polished gold|gold
{} knitted from wool|wool
{}, broken in two|broken
{} as tall as a house|house
{} with wings|wings
{} half buried in sand|buried
""".strip().splitlines()
_LIVING_PROPERTIES = """
{} wearing a straw hat|hat
{} wearing sunglasses|sunglasses
{} wearing a knitted scarf|scarf
{} asleep|asleep sleeping
{} running|running
{} wearing a raincoat|raincoat
{} as a statue of marble|statue
{} covered in mud|mud
{} holding a flower|flower
{} wearing a crown|crown
""".strip().splitlines()
_STYLES = """
a watercolour painting of {}|watercolour
a pencil sketch of {}|sketch pencil
an oil painting of {}|oil
a black and white photograph of {}|black
a stained glass window showing {}|stained
a paper cut-out of {}|paper
a woodcut print of {}|woodcut
a pixel art image of {}|pixel
a clay figure of {}|clay
a poster of {}|poster
""".strip().splitlines()
_VIEWS = """
{} seen from above|above
{} seen from behind|behind
a close-up of {}|close-up
{} far away on the horizon|horizon
{} seen from below|below
{} from the side|side
{} reflected in a mirror|mirror
{} through a window|window
""".strip().splitlines()
_UNRELATED = """
a harbour with fishing boats at dawn
a bowl of oranges on a windowsill
an old stone bridge over a river
a red bicycle leaning against a wall
a crowded market under paper lanterns
a lighthouse in a storm
a stack of books beside a lamp
a field of sunflowers under clouds
a steam train crossing a viaduct
a cup of coffee on a marble counter
a hot-air balloon over hills
a violin on a velvet chair
""".strip().splitlines()


def make_prompt_sets(
    captions: Mapping[Subject, Sequence[str]],
    *,
    num_prompts: int = SUBJECT_COUNT,
    num_others: int = OTHER_COUNT,
) -> list[Prompt]:
    """Return the prompts of each subject, given with the captions of its images.

    The prompts of a class noun that several subjects share, and of unrelated things, occur once. With several
    subjects, ids begin with the subject's number. Subjects without trigger and class noun get no prompts if
    there are others. Raises ConfigError if no subject has a class noun.
    """
    subjects = [subject for subject in captions if subject != Subject()] or list(captions) or [Subject()]
    if len(subjects) == 1:
        own = captions.get(subjects[0], ())
        return make_prompt_set(own, subjects[0], num_prompts=num_prompts, num_others=num_others)
    prompts: dict[tuple[str, str], Prompt] = {}
    for number, subject in enumerate(subjects, 1):
        own = captions[subject]
        for prompt in make_prompt_set(own, subject, num_prompts=num_prompts, num_others=num_others):
            shared = prompt.kind == "unrelated"
            name = prompt.id if shared else f"{number}-{prompt.id}"
            prompts.setdefault((prompt.kind, prompt.prompt), replace(prompt, id=name))
    nouns = [subject.class_noun or "" for subject in subjects]
    return [
        prompt
        for prompt in prompts.values()
        if prompt.kind != "unrelated" or not any(has_word(prompt.prompt, noun) for noun in nouns)
    ]


def make_prompt_set(
    captions: Iterable[str],
    subject: Subject,
    *,
    num_prompts: int = SUBJECT_COUNT,
    num_others: int = OTHER_COUNT,
) -> list[Prompt]:
    """Return `num_prompts` of the subject, `num_others` of its class alone and as many of unrelated things.

    The same input gives the same set. Raises ConfigError without a class noun.
    """
    noun = subject.class_noun
    if not noun:
        remedy = "name what the subject is: --class-noun dog (and --trigger sks)"
        raise ConfigError("a prompt set needs a class noun", where="--class-noun", remedy=remedy)
    if num_prompts < 4 or num_others < 0:
        raise ConfigError(f"{num_prompts} prompts are too few", where="--num-prompts", remedy="use 4 or more")
    caption_words = {word for caption in captions for word in re.findall(r"[\w-]+", caption.casefold())}
    living = noun.split()[-1].casefold() in LIVING_CLASS_NOUNS
    lists = {
        "recontextualization": _PLACES,
        "property": _LIVING_PROPERTIES if living else _THING_PROPERTIES,
        "style": _STYLES,
        "view": _VIEWS,
    }
    prompts = []
    for kind, count in _count_per_kind(num_prompts).items():
        for number, template in enumerate(_novel_templates(lists[kind], caption_words, count), 1):
            prompts.append(_prompt(f"{kind[:4]}-{number:02d}", kind, template, subject))
    for number, template in enumerate(_novel_templates(_PLACES[::-1], set(), num_others), 1):
        prompts.append(_prompt(f"class-{number:02d}", "class", template, Subject(None, noun)))
    unrelated = [text for text in _UNRELATED if noun.casefold() not in text][:num_others]
    prompts += [
        Prompt(f"unrelated-{n:02d}", text, text, kind="unrelated", questions=unrelated_questions(text, noun))
        for n, text in enumerate(unrelated, 1)
    ]
    return prompts


def _count_per_kind(num_prompts: int) -> dict[str, int]:
    """Return the number of prompts of each kind, in the proportion of `SHARES`."""
    total = sum(SHARES.values())
    counts = {kind: max(1, num_prompts * share // total) for kind, share in SHARES.items()}
    counts["recontextualization"] += num_prompts - sum(counts.values())
    return counts


def _novel_templates(templates: Sequence[str], caption_words: set[str], count: int) -> list[str]:
    """Return templates whose words no caption has, then others, since a rich dataset may contain them all."""
    novel = [t for t in templates if not caption_words & set(t.partition("|")[2].split())]
    ordered = [*novel, *(t for t in templates if t not in novel)]
    return [template.partition("|")[0] for template in ordered[:count]]


def _prompt(name: str, kind: str, template: str, subject: Subject) -> Prompt:
    plain = with_article(str(subject.class_noun))
    named = with_article(f"{subject.trigger} {subject.class_noun}") if subject.trigger else plain
    return Prompt(
        name,
        template.replace("{}", named),
        template.replace("{}", plain),
        kind=kind,
        questions=template_questions(template, str(subject.class_noun)),
    )


def write_prompt_set(path: Path, prompts: Sequence[Prompt]) -> Path:
    """Write a JSONL prompt file; ConfigError if the file exists, because somebody may have edited it."""
    if path.exists():
        raise ConfigError("the file exists", where=str(path), remedy="use another --out")
    return storage.write_jsonl(path, [prompt_to_row(prompt) for prompt in prompts])
