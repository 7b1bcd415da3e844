"""Fingerprints of datasets: hashes of everything in the records that training uses."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace

from lorakit.manifest import Record


def dataset_fingerprint(records: Iterable[Record]) -> str:
    """Return the SHA-256, in hex, of everything in the kept records that training uses, in file order."""
    digest = hashlib.sha256()
    for record in sorted(records, key=lambda record: record.file):
        if record.keep:
            texts = [caption.text for caption in record.captions]
            used = [
                record.file,
                record.content_hash,
                record.crop,
                record.bucket,
                texts,
                record.mask_content_hash or record.mask,
                record.repeats,
                *([image.type, image.sha256] for image in record.conditioning_images),
            ]
            digest.update((json.dumps(used, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8"))
    return digest.hexdigest()


def dataset_fingerprints(records: Sequence[Record]) -> tuple[str, str]:
    """Return the fingerprint with all conditioning images, and the one without generated ones.

    The second is that of a run whose base model takes no such images (`conditioning.without_unused_images`).
    """
    user_images = [
        replace(
            record, conditioning_images=tuple(i for i in record.conditioning_images if not i.is_generated)
        )
        for record in records
    ]
    return dataset_fingerprint(records), dataset_fingerprint(user_images)
