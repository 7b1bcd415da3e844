"""Checks of `caption_use` against the captions that there are, and its description for log and report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lorakit.config.caption_use import CaptionUse
from lorakit.core import checksums, storage
from lorakit.core.errors import DataError
from lorakit.data.caption_choice import caption_shares, is_tags
from lorakit.data.items import ConceptRecords
from lorakit.manifest import Record

MAX_NAMED = 5  # images in a message


def check_caption_use(concepts: Sequence[ConceptRecords]) -> None:
    """Raise DataError for images of which the weights use no caption."""
    for data in concepts:
        use = data.concept.caption_use
        if use is None or use.weights is None:
            continue
        without = [r.file for r in data.records if not any(caption_shares(r.captions, use))]
        if without:
            raise DataError(
                f"caption_use.weights uses no caption of {len(without)} of {len(data.records)} images:"
                f" {_listed(without)}",
                where=str(data.concept.folder),
                remedy=f"give these captions a weight, too: {_missing_weights(data.records, use)}",
            )


def _missing_weights(records: Sequence[Record], use: CaptionUse) -> str:
    captions = [c for r in records if not any(caption_shares(r.captions, use)) for c in r.captions]
    if not use.weights or isinstance(use.weights, tuple):
        return "a number above 0 for the first caption"
    if use.weights.by_form:
        names = {"tags" if is_tags(caption.text, use) else "sentences" for caption in captions}
    else:
        names = {caption.source for caption in captions}
    return ", ".join(sorted(names))


def caption_use_warnings(concepts: Sequence[ConceptRecords]) -> Iterator[str]:
    """Yield a line for each setting that has no effect on the captions of a folder, or uses less of them."""
    for data in concepts:
        use, folder = data.concept.caption_use, data.concept.folder
        if use is None:
            continue
        captions = [caption for record in data.records for caption in record.captions]
        num_tags = sum(is_tags(caption.text, use) for caption in captions)
        if use.varies_tags and not num_tags:
            yield (
                f"no caption of {folder} is a list of tags, so that caption_use changes none;"
                " caption_use.tag_captions=all takes every caption for one"
            )
        elif use.varies_tags and (others := len(captions) - num_tags):
            yield (
                f"{others} of {len(captions)} captions of {folder} are sentences, whose order stays, such as"
                f" that of {_first_sentences(data.records, use)}; caption_use.tag_captions=all takes them for"
                " tags"
            )
        if use.keep_marker and not any(use.keep_marker in caption.text for caption in captions):
            yield f"no caption of {folder} has the marker {use.keep_marker!r} of caption_use.keep_marker"
        yield from _unused_captions(data, use)


def _first_sentences(records: Sequence[Record], use: CaptionUse) -> str:
    return next(r.file for r in records if any(not is_tags(c.text, use) for c in r.captions))


def _unused_captions(data: ConceptRecords, use: CaptionUse) -> Iterator[str]:
    if use.weights is None:
        return
    shares = {record.file: caption_shares(record.captions, use) for record in data.records}
    if unused := [file for file, values in shares.items() if 0 in values]:
        count = sum(values.count(0) for values in shares.values())
        yield (
            f"caption_use.weights leaves {count} captions of {data.concept.folder} unused, of"
            f" {_listed(unused)}"
        )
    if not isinstance(use.weights, tuple):
        for name, weight in use.weights.shares().items():
            if weight and not any(_has_kind(record, name, use) for record in data.records):
                yield f"no caption of {data.concept.folder} is of {name!r}, which caption_use.weights names"


def _has_kind(record: Record, name: str, use: CaptionUse) -> bool:
    if name in ("tags", "sentences"):
        return any(is_tags(caption.text, use) == (name == "tags") for caption in record.captions)
    return any(caption.source == name for caption in record.captions)


def sources_hash(concepts: Sequence[ConceptRecords]) -> str | None:
    """Return a hash of the sources of captions, which no fingerprint of a dataset has; None if none decides
    which caption is used."""
    deciding = [
        [record.file, [caption.source for caption in record.captions]]
        for data in concepts
        if (use := data.concept.caption_use) and use.weights is not None
        if not isinstance(use.weights, tuple) and not use.weights.by_form
        for record in data.records
    ]
    return checksums.sha256_bytes(storage.dump_json(deciding).encode()) if deciding else None


def describe_caption_use(records: Sequence[Record], use: CaptionUse) -> str:
    """Return the use of the captions of images in words, such as "24 captions, 20 of them tags in a new order
    at each use"."""
    captions = [caption for record in records for caption in record.captions]
    num_tags = sum(is_tags(caption.text, use) for caption in captions)
    parts = [f"{len(captions)} captions of {len(records)} images, {num_tags} of them lists of tags"]
    if weights := _describe_weights(use):
        parts.append(weights)
    if use.varies_tags:
        parts.append(_describe_tags(use))
    if use.caption_dropout:
        parts.append(f"{_percent(use.caption_dropout)} of the uses without a caption")
    return "; ".join(parts)


def _describe_weights(use: CaptionUse) -> str:
    if use.weights is None:
        return ""
    if isinstance(use.weights, tuple):
        named = {f"caption {number}": weight for number, weight in enumerate(use.weights, 1)}
    else:
        named = use.weights.shares()
    total = sum(named.values())
    return ", ".join(f"{_percent(weight / total)} {name}" for name, weight in named.items())


def _describe_tags(use: CaptionUse) -> str:
    words = []
    if use.shuffle_tags:
        words.append("tags in another order")
    if use.tag_dropout:
        words.append(f"{_percent(use.tag_dropout)} of the tags left out")
    uses = f"in {use.versions} versions of a caption" if use.versions else "at each use"
    first = "the first stays" if use.keep_first == 1 else f"the first {use.keep_first} stay"
    kept = [first] if use.keep_first else []
    kept += [f"those before {use.keep_marker!r} stay"] if use.keep_marker else []
    return f"{' and '.join(words)} {uses}" + (f" ({', '.join(kept)})" if kept else "")


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"


def _listed(files: Sequence[str]) -> str:
    return ", ".join(files[:MAX_NAMED]) + (", ..." if len(files) > MAX_NAMED else "")
