"""votes.jsonl: every vote is appended at once, so that a stopped or killed vote continues where it was.

Rows have a `type`: `session` (the variants that are compared and the seed of the order), `vote`, and `undo`
of a vote. A vote holds the hashes of the two images; it counts as long as the evaluation has these images.
"""

from __future__ import annotations

import contextlib
import datetime
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from lorakit.core import storage
from lorakit.core.errors import DataError, DiskError

VOTES_FILE = "votes.jsonl"
Choice = Literal["left", "right", "too_close", "both_bad"]
CHOICES: tuple[Choice, ...] = get_args(Choice)
_LOCK_FILE = f"{storage.LOCK}-votes"
_LOCK_SECONDS = 10.0
_REMEDY = "correct or remove the line, or move the file away and vote again"


@dataclass(frozen=True)
class Vote:
    """A vote of a person on two images of the same prompt and seed; `left` and `right` are variants."""

    id: str
    voter: str
    prompt_id: str
    seed: int
    left: str
    right: str
    choice: Choice
    is_repeat: bool
    """True if the voter saw the two images before, on the other sides; it measures consistency only."""
    image_hashes: tuple[str, str]
    time: str = ""

    @property
    def preferred(self) -> str | None:
        """The name of the preferred variant, None for neither."""
        return {"left": self.left, "right": self.right}.get(self.choice)

    @property
    def pair(self) -> tuple[str, str]:
        """The names of the two variants, in alphabetical order."""
        first, second = sorted((self.left, self.right))
        return first, second

    def to_json(self) -> dict[str, Any]:
        """Plain values: a row of votes.jsonl."""
        return {
            "type": "vote",
            "id": self.id,
            "voter": self.voter,
            "prompt_id": self.prompt_id,
            "seed": self.seed,
            "left": self.left,
            "right": self.right,
            "choice": self.choice,
            "preferred": self.preferred,
            "is_repeat": self.is_repeat,
            "image_hashes": list(self.image_hashes),
            "time": self.time,
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Vote:
        """Read the values that `to_json` writes."""
        names = ("id", "voter", "prompt_id", "left", "right", "time")
        texts = {name: row[name] for name in names}
        left, right = row["image_hashes"]
        if not all(isinstance(text, str) for text in (*texts.values(), left, right)):
            raise ValueError("a text is expected")
        if row["choice"] not in CHOICES or row["left"] == row["right"]:
            raise ValueError(f"choice {row['choice']!r} between {row['left']!r} and {row['right']!r}")
        if type(row["seed"]) is not int or type(row["is_repeat"]) is not bool:
            raise ValueError(f"seed {row['seed']!r}, is_repeat {row['is_repeat']!r}")
        return cls(
            **texts,
            seed=row["seed"],
            choice=row["choice"],
            is_repeat=row["is_repeat"],
            image_hashes=(left, right),
        )


@dataclass
class VoteLog:
    """The contents of votes.jsonl: the sessions' variants, the seed of the order, the votes not undone."""

    seed: int | None = None
    sessions: list[tuple[str, ...]] = field(default_factory=list)
    votes: list[Vote] = field(default_factory=list)

    def last_vote(self, voter: str) -> Vote | None:
        """Return the last vote of a voter."""
        return next((vote for vote in reversed(self.votes) if vote.voter == voter), None)


class VoteFile:
    """Reads votes.jsonl of an evaluation's folder and appends to it; several processes may do so."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / VOTES_FILE

    def read(self) -> VoteLog:
        """Return the votes; a line that a crash cut off is ignored. Raises DataError for any other damage."""
        if not self.path.exists():
            return VoteLog()
        log, undone = VoteLog(), set()
        for number, row in enumerate(storage.read_jsonl(self.path, torn_tail=True), 1):
            try:
                match row["type"]:
                    case "vote":
                        log.votes.append(Vote.from_json(row))
                    case "undo":
                        undone.add(row["vote_id"])
                    case "session":
                        log.seed = int(row["seed"])
                        log.sessions.append(tuple(map(str, row["variants"])))
                    case unknown:
                        raise ValueError(f"type {unknown!r}")
            except (KeyError, TypeError, ValueError) as error:
                where = f"{self.path}, row {number}"
                raise DataError(f"not a vote: {error!r}", where=where, remedy=_REMEDY) from error
        log.votes = [vote for vote in log.votes if vote.id not in undone]
        return log

    def start_session(self, variants: tuple[str, ...]) -> VoteLog:
        """Record the variants to compare, unless the last session compared the same; return the votes."""
        with self.locked():
            self._repair()
            log = self.read()
            if not log.sessions or log.sessions[-1] != variants:
                seed = secrets.randbelow(2**31) if log.seed is None else log.seed
                self._append({"type": "session", "variants": list(variants), "seed": seed, "time": _now()})
            return self.read()

    def append_vote(self, vote: Vote) -> None:
        """Append a vote durably; the caller holds the lock."""
        self._append(vote.to_json() | {"time": _now()})

    def append_undo(self, vote: Vote) -> None:
        """Take a vote back durably; the caller holds the lock."""
        self._append({"type": "undo", "vote_id": vote.id, "time": _now()})

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from writing within the block."""
        with storage.file_lock(self.path.with_name(_LOCK_FILE), wait_seconds=_LOCK_SECONDS) as is_locked:
            if not is_locked:
                remedy = "end the other `lorakit eval vote`, then try again"
                raise DiskError("another process keeps the votes locked", where=str(self.path), remedy=remedy)
            yield

    def _append(self, row: Mapping[str, Any]) -> None:
        self._repair()
        storage.append_jsonl(self.path, row)
        storage.fsync_file(self.path)

    def _repair(self) -> None:
        """Write the complete lines again if the last one is cut off: the next line would be joined to it."""
        if not self.path.exists():
            return
        data = self.path.read_bytes()
        if data and (not data.endswith(b"\n") or b"\0" in data):
            storage.write_jsonl(self.path, storage.read_jsonl(self.path, torn_tail=True))


def new_vote_id() -> str:
    """Return the identity of a new vote."""
    return secrets.token_hex(8)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
