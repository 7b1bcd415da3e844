"""Images, disk and time that an evaluation needs: counted, measured on this run, or said to be unknown.

No time is invented: it is measured on the first batch, and again with every variant.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lorakit.core.progress import format_duration, print_line
from lorakit.models.memory import format_bytes

LONG_SECONDS = 20 * 60.0  # from here on the estimate is followed by ways to make it shorter
_MAX_MEASURED_FILES = 50
_RACE = "--race (some prompts for all variants, the rest for those that can still be the best)"
_SHORTER = "--max-images N, --checkpoints STEPS or --num-inference-steps N"


@dataclass(frozen=True)
class DiskEstimate:
    """Bytes that one image needs, and what that rests on."""

    bytes_per_image: float
    basis: str


def estimate_disk(images: Iterable[Path], width: int, height: int, num_frames: int = 1) -> DiskEstimate:
    """Estimate from images that exist, of the size (width, height); else the size without compression."""
    from PIL import Image

    sizes = []
    for file in images if num_frames == 1 else ():
        try:
            with Image.open(file) as image:
                is_same = image.size == (width, height)
        except (OSError, SyntaxError, ValueError):
            continue
        if is_same:
            sizes.append(file.stat().st_size)
        if len(sizes) >= _MAX_MEASURED_FILES:
            break
    if sizes:
        basis = f"the mean of {len(sizes)} images of this run"
        return DiskEstimate(sum(sizes) / len(sizes), basis)
    return DiskEstimate(3.0 * width * height * num_frames, "at most: without compression")


def describe_work(missing: int, total: int, disk: DiskEstimate, folder: Path) -> str:
    """Return a line about the images to sample, before the first one."""
    if not missing:
        return f"all {total} images exist: nothing is sampled"
    there = f", {total - missing} of {total} exist" if missing < total else ""
    needed = missing * disk.bytes_per_image
    line = f"{missing} images to sample{there}; {format_bytes(needed)} on disk ({disk.basis})"
    free = _free_bytes(folder)
    if free is not None and free < needed:
        line += f"; warning: only {format_bytes(free)} are free"
    return f"{line}; the time is measured on the first batch"


def _free_bytes(folder: Path) -> int | None:
    existing = next((path for path in (folder, *folder.parents) if path.is_dir()), None)
    try:
        return shutil.disk_usage(existing).free if existing else None
    except OSError:
        return None


class SamplingMeter:
    """Counts sampled images, and prints the time for the rest: at the first batch and with every variant."""

    def __init__(self, total: int = 0, *, quiet: bool = False, is_race: bool = False) -> None:
        self.total, self.quiet, self.is_race = total, quiet, is_race
        self.done, self.seconds = 0, 0.0

    @property
    def seconds_left(self) -> float | None:
        """The time for the rest, at the mean rate so far; None before the first batch."""
        return self.seconds / self.done * (self.total - self.done) if self.done else None

    def add(self, count: int, seconds: float) -> None:
        """Report a batch of images and the time that it took."""
        is_first = not self.done
        self.done, self.seconds = self.done + count, self.seconds + seconds
        if is_first:
            self._print_first(count)

    def _print_first(self, count: int) -> None:
        left = self.seconds_left or 0.0
        each = self.seconds / self.done
        basis = f"measured on the first {count}" if count > 1 else "measured on the first image"
        rest = max(0, self.total - count)
        self._print(f"about {format_duration(left)} for the other {rest} images, {basis} ({each:.1f} s each)")
        if left > LONG_SECONDS:
            self._print(f"shorter: {_SHORTER}" if self.is_race else f"shorter: {_RACE}, {_SHORTER}")

    def variant_done(self, name: str, number: int, count: int) -> None:
        """Report that a variant, the `number`-th of `count`, has all of its images."""
        left = self.seconds_left
        if left is not None and self.done < self.total:
            self._print(f"{name} is sampled, {number} of {count}; about {format_duration(left)} left")

    def _print(self, text: str) -> None:
        if not self.quiet:
            print_line(text)
