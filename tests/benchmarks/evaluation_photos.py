"""Copies and nearest images on real photos, with the ImageNet encoder, through `lorakit eval score`.

`python -m tests.benchmarks.evaluation_photos DIR`: DIR has a folder of photos for each subject. Each photo in
turn is a sample among all others as references: its nearest reference must show the same subject, and it must
not be called a copy. Then copies of all photos are samples, and must be found.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from lorakit.core import storage
from lorakit.evaluation.alarms.training_images import copied_keys
from lorakit.evaluation.evaluate_folder import evaluate_folder
from lorakit.evaluation.judges import JudgeOptions
from lorakit.evaluation.metrics.imagenet_encoder import IMAGENET
from lorakit.evaluation.sample_files import SampleKey
from lorakit.evaluation.score_table import VariantScores
from lorakit.imaging import decode
from lorakit.models.clip_score import EMBEDDED
from tests.benchmarks.evaluation_worlds import COPY_KINDS, make_copy

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
MIN_COPIES_FOUND = 0.9
_SIDE = 512


def measure(folder: Path) -> dict[str, Any]:
    """Return how many photos have a nearest reference of the same subject, and the copies that are found."""
    photos = {
        f"{file.parent.name}-{file.stem}": file
        for file in sorted(folder.glob("*/*"))
        if file.suffix.lower() in SUFFIXES
    }
    with TemporaryDirectory() as temporary:
        place = Path(temporary)
        same, called_copies = _leave_one_out(photos, place)
        copies = _planted_copies(photos, place)
    return {
        "photos": len(photos),
        "nearest_of_same_subject": same,
        "other_photos_called_copies": called_copies,
        "copies_found": copies,
    }


def passes(results: dict[str, Any]) -> bool:
    """Return True if every nearest photo is right, copies are found, and other photos are not called so."""
    found = list(results["copies_found"].values())
    return (
        results["nearest_of_same_subject"] == results["photos"]
        and not results["other_photos_called_copies"]
        and min(found) >= MIN_COPIES_FOUND
    )


def _leave_one_out(photos: dict[str, Path], place: Path) -> tuple[int, list[str]]:
    """Score the n-th photo of every subject against all others, for each n."""
    subjects = {name: file.parent.name for name, file in photos.items()}
    numbers: dict[str, int] = {}
    for name, subject in subjects.items():
        numbers[name] = sum(
            other == subject for other in list(subjects.values())[: list(subjects).index(name)]
        )
    same, copies = 0, []
    for number in sorted(set(numbers.values())):
        samples = {name: [_open(photos[name])] for name in photos if numbers[name] == number}
        references = {name: _open(photos[name]) for name in photos if numbers[name] != number}
        variant, found = _score(samples, references, place / f"fold-{number}")
        for key, nearest in variant.nearest_train_images.items():
            same += nearest.rpartition("-")[0] == subjects[key.prompt_id]
        copies += [f"{key} = {variant.nearest_train_images[key]}" for key in found]
    return same, copies


def _planted_copies(photos: dict[str, Path], place: Path) -> dict[str, float]:
    """Return the share of copies of each kind that are found with the right original."""
    rng = np.random.default_rng(0)
    originals = {name: _open(file) for name, file in photos.items()}
    samples = {
        name: [make_copy(image, kind, rng) for kind in COPY_KINDS] for name, image in originals.items()
    }
    variant, found = _score(samples, originals, place / "copies")
    right = [key for key in found if Path(variant.nearest_train_images[key]).stem == key.prompt_id]
    return {
        kind: sum(key.seed == seed for key in right) / len(originals) for seed, kind in enumerate(COPY_KINDS)
    }


def _open(file: Path) -> Image.Image:
    image = decode.decode_image(file)
    image.thumbnail((_SIDE, _SIDE))
    return image


def _score(
    samples: dict[str, list[Image.Image]], references: dict[str, Image.Image], place: Path
) -> tuple[VariantScores, list[SampleKey]]:
    """Score images as `lorakit eval score` does; return the scores and the images that are copies."""
    for name, image in references.items():
        storage.save_image(place / "references" / f"{name}.png", image)
    for name, images in samples.items():
        for seed, image in enumerate(images):
            storage.save_image(place / "samples" / f"{name}-{seed}.png", image)
    rows = [
        {"id": name, "prompt": f"a photo of a {name}", "seeds": list(range(len(images)))}
        for name, images in samples.items()
    ]
    prompts = storage.write_jsonl(place / "prompts.jsonl", rows)
    result = evaluate_folder(
        place / "samples",
        prompts=prompts,
        out=place / "out",
        judges=JudgeOptions(clip_model=EMBEDDED, image_encoder=IMAGENET),
        references=place / "references",
        quiet=True,
    )
    variant = result.evaluation.variants[-1]
    return variant, copied_keys(result.evaluation, variant)


def main() -> int:
    results = measure(Path(sys.argv[1]))
    print(json.dumps(results, indent=2))
    return 0 if passes(results) else 1


if __name__ == "__main__":
    sys.exit(main())
