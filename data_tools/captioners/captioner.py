"""The interface of captioners: images and prompts in, texts out, and failures with a code."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

CHAT_PROMPT = (
    "Describe this image in one or two sentences for training a text-to-image model: subject, setting, "
    "light, composition and style. State what is visible; do not begin with 'The image'."
)


@dataclass(frozen=True)
class CaptionRequest:
    """An image (RGB, upright, cropped), a prompt, and the seed for sampled answers."""

    image: Image.Image
    prompt: str
    seed: int = 0


@dataclass(frozen=True)
class CaptionResponse:
    """An answer, its tags if the model gives tags, and True if it reached the length limit (`truncated`).

    `notes` say what was removed from the answer; `usage` counts the tokens of prompt and answer, as far as a
    server reports them.
    """

    text: str
    tags: tuple[str, ...] = ()
    truncated: bool = False
    notes: tuple[str, ...] = ()
    usage: tuple[int, int] = (0, 0)


class CaptionFailure(Exception):
    """A request without an answer. `code` is stable, for scripts and for the note in the manifest.

    `fatal` means that all other images would fail in the same way (a wrong key, an unknown model).
    """

    def __init__(self, code: str, message: str, *, fatal: bool = False) -> None:
        super().__init__(message)
        self.code, self.message, self.fatal = code, message, fatal

    @property
    def reason(self) -> str:
        """`code: message`."""
        return f"{self.code}: {self.message}"


class Captioner(ABC):
    """A model that captions images; `num_workers` threads call `caption` with `batch_size` requests each."""

    name: str
    """The name of the model in the manifest."""
    prompts: tuple[str, ...]
    """The prompts if the user gives none."""
    num_workers: int = 1

    @property
    def batch_size(self) -> int:
        """The number of requests for the next call of `caption`."""
        return 1

    @abstractmethod
    def caption(self, requests: Sequence[CaptionRequest]) -> list[CaptionResponse]:
        """Return one response for each request; raise `CaptionFailure` if any of them has none."""

    def cancel(self) -> None:
        """Tell calls in progress, from another thread, not to retry any more."""
        return None
