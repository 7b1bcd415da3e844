"""A vote in progress: the next pair of each voter, and the votes cast and taken back."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path

from lorakit.core.checksums import sha256_file
from lorakit.core.errors import DataError
from lorakit.data.prompts import Prompt
from lorakit.evaluation.sample_files import SampleKey
from lorakit.evaluation.score_table import Evaluation
from lorakit.evaluation.vote.plan import VariantChoice, VoteItem, order_items
from lorakit.evaluation.vote.summary import VoteSummary, current_votes, summarize
from lorakit.evaluation.vote.vote_file import Choice, Vote, VoteFile, VoteLog, new_vote_id
from lorakit.imaging.signatures import is_image_header

MAX_REFERENCES = 12  # reference images on the page


@dataclass(frozen=True)
class VoterState:
    """The pair that a voter sees and the one after it (None if there is none left), and the votes cast."""

    position: int | None
    next_position: int | None
    num_votes: int


class VoteSession:
    """Votes on the variants of an evaluation in `root`; its files are read again before every answer."""

    def __init__(self, evaluation: Evaluation, root: Path, choice: VariantChoice) -> None:
        self.evaluation, self.root, self.choice = evaluation, root, choice
        self.prompts = {prompt.id: prompt for prompt in _voted_prompts(evaluation)}
        self._files = {
            variant.name: variant.files for variant in evaluation.variants if variant.name in choice.names
        }
        self._seeds = self._shared_seeds()
        self._vote_file = VoteFile(root)
        self._mutex = threading.Lock()
        self._log = self._vote_file.start_session(choice.names)
        self._orders: dict[str, list[VoteItem]] = {}
        self.references = _reference_files(evaluation, root)

    def _shared_seeds(self) -> dict[str, list[int]]:
        """Return the seeds of each prompt with a readable image of every variant; DataError if none has."""
        seeds: dict[str, list[int]] = {}
        for prompt in self.prompts.values():
            for seed in prompt.seeds:
                key = SampleKey(prompt.id, seed)
                if all(key in files and self._is_shown(files[key]) for files in self._files.values()):
                    seeds.setdefault(prompt.id, []).append(seed)
        if not seeds:
            remedy = "evaluate again: `lorakit eval run RUN` samples missing images"
            where, names = str(self.root), ", ".join(self.choice.names)
            raise DataError(f"no prompt has images of {names}", where=where, remedy=remedy)
        return seeds

    def _is_shown(self, name: str) -> bool:
        """Return True for an image; that of a run has to be in the run's own evaluation."""
        file = self.root / name
        is_run = (self.root.parent / "recipe.yaml").is_file()
        return _is_image(file) and (not is_run or file.resolve().is_relative_to(self.root.resolve()))

    def items(self, voter: str) -> list[VoteItem]:
        """Return the pairs in the order of a voter."""
        if voter not in self._orders:
            assert self._log.seed is not None
            self._orders[voter] = order_items(self.choice.names, self._seeds, self._log.seed, voter)
        return self._orders[voter]

    def state(self, voter: str) -> VoterState:
        """Return the next pair of a voter; pairs of variants whose test has ended come last."""
        log = self._vote_file.read()
        return self._state(log, voter)

    def _state(self, log: VoteLog, voter: str) -> VoterState:
        current = current_votes(log, self.evaluation, self.root)
        own_votes = [vote for vote in current if vote.voter == voter]
        own = {(vote.pair, vote.prompt_id, vote.seed, vote.is_repeat) for vote in own_votes}
        ended = {
            (min(pair.first, pair.second), max(pair.first, pair.second))
            for pair in self._summarize(log).pairs
            if pair.ended_after is not None
        }
        remaining = []
        for position, item in enumerate(self.items(voter)):
            if (item.pair, *item.key, item.is_repeat) in own:
                continue
            if item.is_repeat and (item.pair, *item.key, False) not in own:
                continue
            remaining.append((item.pair in ended, position))
        positions = [number for _, number in sorted(remaining)]
        following = positions[1] if len(positions) > 1 else None
        return VoterState(positions[0] if positions else None, following, len(own_votes))

    def cast(self, voter: str, position: int, choice: Choice) -> bool:
        """Record a vote on the pair that the voter sees now; False for any other, such as one sent twice."""
        with self._mutex, self._vote_file.locked():
            log = self._vote_file.read()
            if self._state(log, voter).position != position:
                return False
            item = self.items(voter)[position]
            hashes = [sha256_file(self.image_file(voter, position, side)) for side in ("left", "right")]
            self._vote_file.append_vote(
                Vote(
                    new_vote_id(),
                    voter,
                    *item.key,
                    item.left,
                    item.right,
                    choice,
                    item.is_repeat,
                    (hashes[0], hashes[1]),
                )
            )
            return True

    def undo(self, voter: str) -> bool:
        """Take back the voter's last vote; False if there is none."""
        with self._mutex, self._vote_file.locked():
            last = self._vote_file.read().last_vote(voter)
            if last is None:
                return False
            self._vote_file.append_undo(last)
            return True

    def summary(self) -> VoteSummary:
        """Return the result of all votes so far."""
        return self._summarize(self._vote_file.read())

    def _summarize(self, log: VoteLog) -> VoteSummary:
        return summarize(log, self.evaluation, self.root)

    def prompt(self, voter: str, position: int) -> Prompt:
        """Return the prompt of a pair."""
        return self.prompts[self.items(voter)[position].key.prompt_id]

    def image_file(self, voter: str, position: int, side: str) -> Path:
        """Return the image on one side of a pair; raises IndexError or KeyError if there is no such pair."""
        item = self.items(voter)[position]
        variant = {"left": item.left, "right": item.right}[side]
        return Path(os.path.normpath(self.root / self._files[variant][item.key]))


def _voted_prompts(evaluation: Evaluation) -> list[Prompt]:
    """Return the prompts about the subject; all prompts if none is."""
    return evaluation.prompts_of_role("subject") or evaluation.prompts


def _reference_files(evaluation: Evaluation, root: Path) -> list[Path]:
    """Return reference images of the subject that can be shown, the held-out ones first."""
    if evaluation.references is None or evaluation.train_images is None:
        return []
    folder = root / evaluation.train_images
    units = sorted(evaluation.references.units, key=lambda unit: unit.trained_on)
    files = [Path(os.path.normpath(folder / unit.names[0])) for unit in units]
    return [file for file in files if file.is_relative_to(os.path.normpath(folder)) and _is_image(file)][
        :MAX_REFERENCES
    ]


def _is_image(file: Path) -> bool:
    """Return True for a readable regular file that starts like an image: nothing else is ever shown."""
    try:
        if not file.is_file():
            return False
        with open(file, "rb") as stream:
            return is_image_header(stream.read(16))
    except OSError:
        return False
