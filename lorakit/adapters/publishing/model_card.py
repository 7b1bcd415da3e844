"""The model card of an adapter: README.md with the model hub's YAML front matter, as plain Markdown.

It says what is known, and what is not. It contains no image, caption, file name or folder of the training
data: see `private_data`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lorakit.adapters.publishing.card_facts import NO_EVALUATION, CardFacts
from lorakit.core import checksums, storage
from lorakit.core.progress import print_line
from lorakit.core.version import __version__

CARD_FILE, GRID_FILE, THUMBNAIL_FILE = "README.md", "samples.png", "thumbnail.jpg"
_MARK = "<!-- written by lorakit, sha256 of the text above: "
_MAX_SIZES = 5
_PACKAGES = ("lorakit", "python", "torch", "diffusers", "transformers", "peft")
_CONSUMERS = {"comfyui": "ComfyUI", "a1111": "A1111 and Forge", "diffusers": "diffusers"}


@dataclass(frozen=True)
class CardFile:
    """An adapter file beside the card, the programs that load it, and its hash."""

    name: str
    consumers: tuple[str, ...]
    sha256: str


@dataclass(frozen=True)
class CardExample:
    """An example image beside the card, and its prompt."""

    file: str
    prompt: str


@dataclass(frozen=True)
class CardContents:
    """Files that the card refers to, and the choices of who publishes it."""

    files: Sequence[CardFile] = ()
    has_grid: bool = False
    has_thumbnail: bool = False
    examples: Sequence[CardExample] = ()
    evaluation_file: str | None = None
    title: str | None = None
    license: str | None = None
    repository: str | None = None
    is_strength_applied: bool = False
    """True if the files are used at strength 1, because the adapter's is multiplied into them."""

    def strength(self, facts: CardFacts) -> float:
        """Return the strength to use the files with."""
        return 1.0 if self.is_strength_applied else facts.strength


def format_card(facts: CardFacts, contents: CardContents) -> str:
    """Return the text of a card, with a mark by which an edited one is recognized."""
    front = yaml.safe_dump(_front_matter(facts, contents), sort_keys=False, allow_unicode=True, width=1000)
    text = f"---\n{front}---\n\n" + "\n".join(_lines(facts, contents)) + "\n"
    return f"{text}\n{_MARK}{checksums.sha256_bytes(text.encode())} -->\n"


def is_unedited(text: str) -> bool:
    """Return True for a card that lorakit wrote and nobody edited."""
    body, mark, rest = text.rpartition(f"\n{_MARK}")
    return bool(mark) and rest.partition(" ")[0] == checksums.sha256_bytes(body.encode())


def write_card(folder: Path, text: str) -> Path | None:
    """Write README.md into a folder; leave one that somebody else wrote or edited, and say so."""
    file = folder / CARD_FILE
    if file.exists() and not is_unedited(file.read_text(encoding="utf-8", errors="replace")):
        print_line(f"note: {file} was written or edited by somebody, so it stays; remove it for a new card")
        return None
    return storage.write_text(file, text)


def _front_matter(facts: CardFacts, contents: CardContents) -> dict[str, Any]:
    values: dict[str, Any] = {"library_name": "diffusers"}
    if facts.base and "/" in facts.base:
        values |= {"base_model": facts.base.partition("@")[0], "base_model_relation": "adapter"}
    values["pipeline_tag"] = "text-to-video" if facts.is_video else "text-to-image"
    values["tags"] = ["lora", "diffusers", "lorakit", "template:diffusion-lora"]
    if contents.license:
        values["license"] = contents.license
    if facts.trigger:
        values["instance_prompt"] = facts.trigger
    if contents.has_thumbnail:
        values["thumbnail"] = THUMBNAIL_FILE
    if contents.examples:
        values["widget"] = [
            {"text": example.prompt, "output": {"url": example.file}} for example in contents.examples
        ]
    return values


def card_title(facts: CardFacts, contents: CardContents) -> str:
    """Return the title: the chosen one, the repository's name, or subject and family."""
    if contents.title:
        return contents.title
    if contents.repository:
        return contents.repository.rpartition("/")[2]
    nouns = [concept.class_noun for concept in facts.recipe.concepts if concept.class_noun]
    subject = " ".join(dict.fromkeys([*([facts.trigger] if facts.trigger else []), *nouns]))
    return f"{subject or 'An adapter'} for {facts.family_title}"


def _lines(facts: CardFacts, contents: CardContents) -> Iterator[str]:
    yield f"# {_escaped(card_title(facts, contents))}"
    yield ""
    yield _summary(facts)
    if contents.has_grid:
        yield ""
        yield f"![Samples]({GRID_FILE})"
    yield from _use(facts, contents)
    yield from _evaluation(facts, contents)
    yield from _training(facts)
    yield from _data(facts)
    yield from _license(facts, contents)
    yield from _origin(facts)


def _summary(facts: CardFacts) -> str:
    settings, count = facts.recipe.adapter, facts.data.images
    base = f"`{facts.base}` ({facts.family_title})" if facts.base else facts.family_title
    things = "videos" if facts.data.videos and facts.data.videos == count else "images"
    images = f", trained on {count} {things}" if count else ""
    return f"A {_method(facts)} of rank {settings.rank} for {base}{images}, with lorakit {__version__}."


def _method(facts: CardFacts) -> str:
    names = {"lora": "LoRA", "rslora": "rank-stabilized LoRA", "dora": "DoRA", "lokr": "LoKr", "loha": "LoHa"}
    kind = facts.recipe.adapter.type
    return names.get(kind, kind.upper())


def _use(facts: CardFacts, contents: CardContents) -> Iterator[str]:
    strength = contents.strength(facts)
    yield from _heading("Use")
    if facts.trigger:
        yield f"Write **{_escaped(facts.trigger)}** in the prompt, and use strength {strength:g}."
    else:
        yield f"Use strength {strength:g}. There is no trigger word."
    if contents.files:
        yield ""
        yield from _table(
            ("file", "for", "SHA-256"),
            ((f"`{file.name}`", _programs(file), f"`{file.sha256[:16]}…`") for file in contents.files),
        )
    diffusers_file = next((file for file in contents.files if "diffusers" in file.consumers), None)
    if diffusers_file and facts.base and "/" in facts.base and contents.repository:
        yield ""
        yield from _snippet(facts, contents.repository, diffusers_file.name, strength)


def _programs(file: CardFile) -> str:
    return ", ".join(_CONSUMERS.get(name, name) for name in file.consumers) or "programs that load such files"


def _snippet(facts: CardFacts, repository: str, name: str, strength: float) -> Iterator[str]:
    base = (facts.base or "").partition("@")[0]
    yield "```python"
    yield "from diffusers import DiffusionPipeline"
    yield ""
    yield f'pipe = DiffusionPipeline.from_pretrained("{base}")'
    yield f'pipe.load_lora_weights("{repository}", weight_name="{name}", adapter_name="adapter")'
    if strength != 1:
        yield f'pipe.set_adapters(["adapter"], [{strength:g}])'
    yield f"image = pipe({(facts.trigger or 'a photo')!r}).images[0]"
    yield "```"


def _evaluation(facts: CardFacts, contents: CardContents) -> Iterator[str]:
    yield from _heading("Evaluation")
    record = facts.evaluation
    if record is None:
        yield f"{facts.no_evaluation or NO_EVALUATION} Nothing but samples shows its quality."
        return
    verdict = facts.public_text(record.verdict)
    if verdict:
        yield _escaped(verdict)
    elif not record.recommended:
        yield "The evaluation recommends no checkpoint of this run without reservation."
    if record.alarms:
        titles = ", ".join(
            dict.fromkeys(str(alarm.get("title", alarm.get("name"))) for alarm in record.alarms)
        )
        yield ""
        yield f"Alarms and warnings of the evaluation: {_escaped(titles)}."
    if record.scores:
        yield ""
        heads = ("score", "prompts", "base model", "with the adapter", "change")
        keys = ("score", "prompts", "base", "adapter", "change")
        yield from _table(heads, ([_escaped(row.get(key, "")) for key in keys] for row in record.scores))
        yield ""
        yield "In brackets: 95 % intervals over the prompts, with the same noise for both models."
        yield ""
        meanings = {row["score"]: row["meaning"] for row in record.scores if row.get("meaning")}
        for score, meaning in meanings.items():
            yield f"- {_escaped(score)}: {_escaped(meaning)}"
    if contents.evaluation_file:
        yield ""
        yield f"The numbers are in `{contents.evaluation_file}`, too."


def _training(facts: CardFacts) -> Iterator[str]:
    yield from _heading("Training")
    yield from _table(("setting", "value"), ((name, _escaped(text)) for name, text in _settings(facts)))


def _settings(facts: CardFacts) -> Iterator[tuple[str, str]]:
    recipe = facts.recipe
    adapter, optimizer, train = recipe.adapter, recipe.optimizer, recipe.train
    step = facts.source.step or train.steps
    yield "adapter", f"{adapter.type}, rank {adapter.rank}, alpha {adapter.alpha:g}"
    yield "target modules", adapter.targets if isinstance(adapter.targets, str) else "a list of its own"
    yield "text encoders", _text_encoders(adapter.text_encoder)
    yield (
        "resolution",
        f"{recipe.resolution} pixels" + (f", {recipe.frames} frames" if recipe.frames > 1 else ""),
    )
    of_all = "" if step == train.steps else f" of {train.steps}"
    images = train.batch_size * train.accumulate
    yield "steps", f"{step}{of_all}, of {images} image{'s' if images > 1 else ''} for each process"
    yield "optimizer", f"{optimizer.name}, learning rate {optimizer.lr:g}, {optimizer.schedule}"
    yield "precision", train.precision
    yield "seed", str(train.seed)


def _text_encoders(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "trained" if value is True else "not trained" if value in (False, None) else str(value)


def _data(facts: CardFacts) -> Iterator[str]:
    yield from _heading("Data")
    data = facts.data
    rows = [("images", "not recorded" if data.images is None else str(data.images))]
    rows += [("of these held out for evaluation", str(data.held_out))] if data.held_out else []
    rows += [("videos", str(data.videos))] if data.videos else []
    if data.captions:
        sources = ", ".join(f"{count} from {source}" for source, count in data.captions.items())
        rows.append(("captions", sources))
    rows += [("masks", str(data.masks))] if data.masks else []
    if data.sizes:
        frequent = [f"{size} ({count})" for size, count in data.sizes[:_MAX_SIZES]]
        more = len(data.sizes) - len(frequent)
        rows.append(("sizes in pixels", ", ".join(frequent) + (f" and {more} others" if more else "")))
    yield from _table(("", ""), rows)
    yield ""
    yield "The training images and their captions are not part of this card."


def _license(facts: CardFacts, contents: CardContents) -> Iterator[str]:
    yield from _heading("License")
    own = f"{contents.license}." if contents.license else "Not stated by who published it."
    yield f"{own} {facts.license_of_base}"


def _origin(facts: CardFacts) -> Iterator[str]:
    yield from _heading("Origin")
    metadata = facts.metadata
    rows = [
        ("adapter, SHA-256", facts.adapter_sha256),
        ("base model, lorakit's hash", metadata.get("base_hash")),
    ]
    rows += [("recipe, lorakit's hash", metadata.get("recipe_hash"))]
    versions = ", ".join(f"{name} {facts.versions[name]}" for name in _PACKAGES if name in facts.versions)
    yield from _table(
        ("", ""),
        [*((name, f"`{value}`") for name, value in rows if value), ("versions", versions or "not recorded")],
    )


def _heading(text: str) -> Iterator[str]:
    yield ""
    yield f"## {text}"
    yield ""


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for row in rows:
        yield f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in row)} |"


def _escaped(text: str) -> str:
    """Return text in one line, without marks of Markdown."""
    plain = " ".join(str(text).split())
    for mark in "\\`*_[]<>":
        plain = plain.replace(mark, f"\\{mark}")
    return plain


def numbers_of_evaluation(facts: CardFacts) -> Mapping[str, Any] | None:
    """Return the content of evaluation.json; None without an evaluation."""
    record = facts.evaluation
    if record is None:
        return None
    return {
        "step": record.step,
        "strength": record.strength,
        "recommended": record.recommended,
        "verdict": facts.public_text(record.verdict),
        "num_prompts": record.num_prompts,
        "alarms": [
            {key: alarm[key] for key in ("name", "title", "level") if key in alarm} for alarm in record.alarms
        ],
        "scores": record.scores,
    }
