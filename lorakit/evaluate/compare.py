"""Scores of two sets of pictures with the same prompts and seeds, and the gain from one to the other."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lorakit import storage
from lorakit.errors import DataError
from lorakit.images import decode
from lorakit.prompts import Prompt, Shot
from lorakit.statistics import Interval, bootstrap_mean, paired_bootstrap

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

ALL = "all prompts"
_FIRST = ("concept", "other")  # the kinds that lead every table, in this order
Key = tuple[str, int]  # prompt id and seed


class Scorer(Protocol):
    """What `compare` needs of `score.ClipScorer`."""

    def image_features(self, images: Sequence[Image.Image]) -> Any: ...
    def clip_t(self, images: Any, texts: Sequence[str]) -> NDArray[np.float64]: ...
    def choose(self, images: Any, options: Sequence[Sequence[str]]) -> NDArray[np.int64]: ...
    def describe(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Pair:
    """The pictures of one prompt and seed, their CLIP-T (cosines), and what CLIP took them for, if asked."""

    prompt: Prompt
    seed: int
    before_image: Image.Image
    after_image: Image.Image
    before: float
    after: float
    chosen_before: str | None = None
    chosen_after: str | None = None

    @property
    def gain(self) -> float:
        return self.after - self.before


@dataclass(frozen=True)
class Group:
    """The means of one kind of prompts: scores as cosines, right choices as shares of the pictures asked."""

    kind: str
    pairs: int
    before: Interval
    after: Interval
    gain: Interval
    right_before: Interval | None = None
    right_after: Interval | None = None


@dataclass(frozen=True)
class Comparison:
    """Every pair, the means by kind (first what was trained, where prompts say so), the scorer's settings."""

    pairs: list[Pair]
    groups: list[Group]
    scorer: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The numbers without the pictures."""
        return {
            "scorer": self.scorer,
            "groups": [_group_json(group) for group in self.groups],
            "pairs": [_pair_json(pair) for pair in self.pairs],
        }


def compare(
    before: Sequence[Shot],
    after: Sequence[Shot],
    scorer: Scorer,
    *,
    alternatives: Mapping[str, Sequence[str]] | None = None,
    seed: int = 0,
) -> Comparison:
    """Score both sets against each prompt's `score_text` and pair them by prompt id and seed.

    `alternatives` maps prompt ids to texts, the prompt's own `score_text` among them: CLIP then also chooses
    one for each picture, and the share of right choices is reported. `seed` is the bootstrap's. Raises
    DataError when the two sets do not hold the same prompts and seeds.
    """
    first, second = _by_key(before, "before"), _by_key(after, "after")
    _check_same(first, second)
    shots = [*first.values(), *(second[key] for key in first)]
    texts = _checked_alternatives(shots, alternatives or {})
    features = scorer.image_features([shot.image for shot in shots])
    scores = [float(s) for s in scorer.clip_t(features, [shot.prompt.score_text for shot in shots])]
    chosen: list[str | None] = [None] * len(shots)
    asked = [i for i, shot in enumerate(shots) if shot.prompt.id in texts]
    if asked:
        options = [texts[shots[i].prompt.id] for i in asked]
        for i, option, pick in zip(asked, options, scorer.choose(features[asked], options), strict=True):
            chosen[i] = option[int(pick)]
    half = len(first)
    pairs = [
        Pair(a.prompt, a.seed, a.image, b.image, scores[i], scores[half + i], chosen[i], chosen[half + i])
        for i, (a, b) in enumerate(zip(shots[:half], shots[half:], strict=True))
    ]
    return Comparison(pairs, _groups(pairs, seed), scorer.describe())


def load_shots(folder: str | Path, prompts: Iterable[Prompt]) -> list[Shot]:
    """The pictures of a folder, of any generator, by its samples.json: a list of {prompt_id, seed, file}.

    Raises DataError naming the row for a prompt id that `prompts` lacks, or a file that is missing, broken or
    outside the folder.
    """
    root = Path(folder)
    index = root / "samples.json"
    if not index.is_file():
        remedy = "list the pictures in it: [{prompt_id, seed, file}, ...]"
        raise DataError("the folder has no samples.json", where=str(root), remedy=remedy)
    rows = storage.read_json(index)
    if not isinstance(rows, list) or not rows:
        raise DataError("must be a list of at least one {prompt_id, seed, file}", where=str(index))
    known = {prompt.id: prompt for prompt in prompts}
    return [_shot(row, known, root, f"{index}, row {number}") for number, row in enumerate(rows, 1)]


def word_alternatives(prompts: Iterable[Prompt], words: Sequence[str]) -> dict[str, list[str]]:
    """Alternatives for `compare`: each `score_text` with its one word or phrase of `words` swapped for each.

    An empty word leaves the word out. Prompts with none or several of the words are not asked.
    """
    named = [word for word in words if word]
    pattern = re.compile("|".join(rf"\b{re.escape(word)}\b" for word in sorted(named, key=len, reverse=True)))
    found: dict[str, list[str]] = {}
    for prompt in prompts:
        hits = list(pattern.finditer(prompt.score_text))
        if named and len(hits) == 1:
            head, tail = prompt.score_text[: hits[0].start()], prompt.score_text[hits[0].end() :]
            found[prompt.id] = [_join(head, word, tail) for word in words]
    return found


def _join(head: str, word: str, tail: str) -> str:
    """The text around another word, its article fitted: a wrong "an" would give a wrong option away."""
    rest = f"{word}{tail}" if word else tail.lstrip()
    n = "n" if rest[:1].lower() in tuple("aeiou") else ""
    return re.sub(r"\b([Aa])n? $", rf"\g<1>{n} ", head) + rest


def _shot(row: Any, known: Mapping[str, Prompt], root: Path, where: str) -> Shot:
    keys = {"prompt_id": str, "seed": int, "file": str}
    if not isinstance(row, dict) or any(not isinstance(row.get(key), kind) for key, kind in keys.items()):
        raise DataError("a row needs prompt_id (text), seed (whole number) and file (text)", where=where)
    if row["prompt_id"] not in known:
        raise DataError(f"the prompt file has no id {row['prompt_id']!r}", where=where)
    path = (root / row["file"]).resolve()
    if not path.is_relative_to(root.resolve()):
        raise DataError(f"{row['file']!r} lies outside the folder", where=where)
    if not path.is_file():
        raise DataError(f"{row['file']!r} does not exist", where=where)
    return Shot(known[row["prompt_id"]], row["seed"], decode(path))


def _by_key(shots: Sequence[Shot], name: str) -> dict[Key, Shot]:
    keyed: dict[Key, Shot] = {}
    for shot in shots:
        key = (shot.prompt.id, shot.seed)
        if key in keyed:
            raise DataError(f"prompt {key[0]!r} with seed {key[1]} appears twice", where=name)
        keyed[key] = shot
    return keyed


def _check_same(before: Mapping[Key, Shot], after: Mapping[Key, Shot]) -> None:
    if not before:
        raise DataError("no pictures to compare", where="before")
    for here, there, name in ((before, after, "after"), (after, before, "before")):
        if missing := [f"{prompt} seed {seed}" for prompt, seed in here if (prompt, seed) not in there]:
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            remedy = "sample both with the same prompt file"
            raise DataError(f"missing pictures: {', '.join(missing[:5])}{more}", where=name, remedy=remedy)
    for key, shot in before.items():
        if shot.prompt != after[key].prompt:
            raise DataError(f"prompt {key[0]!r} is not the same before and after", where=str(key[0]))


def _checked_alternatives(
    shots: Sequence[Shot], alternatives: Mapping[str, Sequence[str]]
) -> dict[str, list[str]]:
    prompts = {shot.prompt.id: shot.prompt for shot in shots}
    for name, texts in alternatives.items():
        if name not in prompts:
            raise DataError(f"alternatives for {name!r}, which has no pictures", where=name)
        if prompts[name].score_text not in texts:
            raise DataError(f"the right answer, {prompts[name].score_text!r}, is not among them", where=name)
    return {name: list(texts) for name, texts in alternatives.items()}


def _groups(pairs: list[Pair], seed: int) -> list[Group]:
    """One group a kind, the trained concept first, and all of them together where there are several."""
    kinds = list(dict.fromkeys(pair.prompt.kind for pair in pairs))
    kinds.sort(key=lambda kind: _FIRST.index(kind) if kind in _FIRST else len(_FIRST))
    groups = [_group(kind, [pair for pair in pairs if pair.prompt.kind == kind], seed) for kind in kinds]
    return groups if len(groups) == 1 else [*groups, _group(ALL, pairs, seed)]


def _group(kind: str, pairs: list[Pair], seed: int) -> Group:
    units = [pair.prompt.id for pair in pairs]
    before, after = [pair.before for pair in pairs], [pair.after for pair in pairs]
    return Group(
        kind,
        len(pairs),
        bootstrap_mean(before, units, seed=seed),
        bootstrap_mean(after, units, seed=seed),
        paired_bootstrap(before, after, units, seed=seed),
        _right([(pair.prompt, pair.chosen_before) for pair in pairs], seed),
        _right([(pair.prompt, pair.chosen_after) for pair in pairs], seed),
    )


def _right(choices: list[tuple[Prompt, str | None]], seed: int) -> Interval | None:
    """The share of right choices among the pictures that were asked, if any."""
    asked = [(prompt, text) for prompt, text in choices if text is not None]
    if not asked:
        return None
    hits = [float(text == prompt.score_text) for prompt, text in asked]
    return bootstrap_mean(hits, [prompt.id for prompt, _ in asked], seed=seed)


def _group_json(group: Group) -> dict[str, Any]:
    intervals = {
        "before": group.before,
        "after": group.after,
        "gain": group.gain,
        "right_before": group.right_before,
        "right_after": group.right_after,
    }
    values = {name: interval.to_json() for name, interval in intervals.items() if interval is not None}
    return {"kind": group.kind, "pairs": group.pairs, **values}


def _pair_json(pair: Pair) -> dict[str, Any]:
    row = {
        "prompt_id": pair.prompt.id,
        "seed": pair.seed,
        "kind": pair.prompt.kind,
        "prompt": pair.prompt.prompt,
        "score_text": pair.prompt.score_text,
        "before": pair.before,
        "after": pair.after,
        "gain": pair.gain,
    }
    if pair.chosen_before is not None:
        row |= {"chosen_before": pair.chosen_before, "chosen_after": pair.chosen_after}
    return row
