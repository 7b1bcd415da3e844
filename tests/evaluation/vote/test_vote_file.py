"""votes.jsonl: appended, taken back, cut off by a crash, damaged by hand."""

from __future__ import annotations

import json

import pytest

from lorakit.core.errors import DataError
from lorakit.evaluation.vote.vote_file import VoteFile
from tests.evaluation.vote.ballots import make_vote

PAIR = ("a", "b")


@pytest.fixture
def file(tmp_path) -> VoteFile:
    file = VoteFile(tmp_path)
    file.start_session(PAIR)
    with file.locked():
        for number, choice in enumerate(("left", "right", "too_close")):
            file.append_vote(make_vote(number, f"p{number}", choice))
    return file


def test_votes_are_read_in_their_order(file):
    log = file.read()
    assert [(vote.prompt_id, vote.choice, vote.preferred) for vote in log.votes] == [
        ("p0", "left", "a"),
        ("p1", "right", "b"),
        ("p2", "too_close", None),
    ]
    assert log.sessions == [PAIR]
    assert all(vote.time for vote in log.votes)


def test_the_last_vote_of_a_voter_can_be_taken_back(file):
    with file.locked():
        file.append_vote(make_vote(3, "p3", "left", voter="Anna"))
        file.append_undo(file.read().last_vote(""))
    log = file.read()
    assert [vote.id for vote in log.votes] == ["0", "1", "3"]
    assert log.last_vote("").id == "1"
    assert log.last_vote("Anna").id == "3"
    assert log.last_vote("Otto") is None


def test_the_seed_of_the_order_is_kept_and_other_variants_begin_a_session(file):
    seed = file.read().seed
    size = file.path.stat().st_size
    assert file.start_session(PAIR).seed == seed
    assert file.path.stat().st_size == size
    log = file.start_session(("a", "b", "c"))
    assert (log.seed, log.sessions) == (seed, [PAIR, ("a", "b", "c")])
    assert len(log.votes) == 3


@pytest.mark.parametrize("cut", [1, 7, 60])
@pytest.mark.parametrize("zeros", [0, 512])
def test_a_line_that_a_crash_cut_off_is_ignored_and_replaced_by_the_next_vote(file, cut, zeros):
    data = file.path.read_bytes()
    file.path.write_bytes(data[:-cut] + bytes(zeros))
    complete = 3 if cut == 1 and not zeros else 2  # without its line break the last line is still complete
    assert len(file.read().votes) == complete
    with file.locked():
        file.append_vote(make_vote(9, "p9", "left"))
    assert [vote.id for vote in file.read().votes] == [*["0", "1", "2"][:complete], "9"]
    assert all(json.loads(line) for line in file.path.read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        "[]",
        '{"type": "vote"}',
        '{"type": "poll"}',
        "{}",
        '{"type": "session", "variants": 3, "seed": 1}',
        json.dumps(make_vote(1, "p", "left").to_json() | {"choice": "maybe"}),
        json.dumps(make_vote(1, "p", "left").to_json() | {"right": "a"}),
        json.dumps(make_vote(1, "p", "left").to_json() | {"seed": "0"}),
        json.dumps(make_vote(1, "p", "left").to_json() | {"image_hashes": ["x"]}),
        json.dumps(make_vote(1, "p", "left").to_json() | {"voter": 7}),
    ],
)
def test_any_other_damage_is_an_error_with_its_line(file, line):
    lines = file.path.read_text(encoding="utf-8").splitlines()
    lines.insert(2, line)
    file.path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(DataError) as refused:
        file.read()
    assert "votes.jsonl" in refused.value.where
    assert "3" in refused.value.where


def test_without_a_file_there_are_no_votes(tmp_path):
    log = VoteFile(tmp_path).read()
    assert (log.seed, log.sessions, log.votes) == (None, [], [])
