"""Numbers of a captioning: answers that were there, requests, failures by reason, tokens."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from data_tools.captioners import CaptionFailure
from data_tools.captions.caption_jobs import CaptionResult
from lorakit.core.progress import print_line

MAX_IDENTICAL_FAILURES = 20  # one after the other: the rest is not requested
MAX_UNREACHABLE = 3  # the same, for requests that did not reach the server
_LINES = 5  # reasons that are printed at once


@dataclass
class CaptioningCounts:
    """Counts answers, and decides when to stop: after a fatal failure, or if every request fails alike.

    `num_known` answers were there before; of the requests, `num_answered` have an answer.
    """

    num_known: int = 0
    num_requests: int = 0
    num_answered: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    """Number of failed images by reason."""
    stop_reason: CaptionFailure | None = None
    quiet: bool = True
    _codes: list[str] = field(default_factory=list)

    def add(self, result: CaptionResult) -> None:
        """Count one more result."""
        if not isinstance(result, CaptionFailure):
            self.num_answered += 1
            self.prompt_tokens += result.usage[0]
            self.answer_tokens += result.usage[1]
            self._codes = []
            return
        self.failures[result.reason] += 1
        if self.failures[result.reason] == 1 and len(self.failures) <= _LINES and not self.quiet:
            print_line(f"no caption: {result.reason}")
        if result.code == "unreadable":
            return
        self._codes = [*self._codes, result.code] if result.code in self._codes[-1:] else [result.code]
        is_dead = result.code == "unreachable" and self.num_answered == 0 and len(self._codes) == 1
        limit = MAX_UNREACHABLE if result.code == "unreachable" else MAX_IDENTICAL_FAILURES
        refuses_some = result.code == "refused" and self.num_answered
        if result.fatal or is_dead or (len(self._codes) >= limit and not refuses_some):
            self.stop_reason = result

    def add_not_requested(self, count: int) -> None:
        """Count the images that were not requested because of `stop_reason`."""
        assert self.stop_reason is not None
        self.failures[self.stop_reason.reason] += count
        if count and not self.quiet:
            print_line(f"stopped: {count} more images are not requested after {self.stop_reason.reason}")

    def to_json(self) -> dict[str, Any]:
        """Return the numbers for scripts."""
        tokens = {"prompt_tokens": self.prompt_tokens, "answer_tokens": self.answer_tokens}
        return {
            "known": self.num_known,
            "requested": self.num_requests,
            "answered": self.num_answered,
            **(tokens if self.prompt_tokens or self.answer_tokens else {}),
            "failures": dict(self.failures),
        }

    def summary(self) -> str:
        """Return one line for people."""
        parts = [f"{self.num_answered} of {self.num_requests} requests answered"]
        parts += [f"{self.num_known} answers were there before"] if self.num_known else []
        if self.prompt_tokens or self.answer_tokens:
            parts.append(f"{self.prompt_tokens:,} tokens sent, {self.answer_tokens:,} received")
        return ", ".join(parts)
