"""Evaluations with small images, and a client of the vote's page that speaks plain HTTP."""

from __future__ import annotations

import contextlib
import http.client
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlencode, urljoin, urlsplit

from PIL import Image, ImageDraw

from lorakit.core import storage
from lorakit.core.checksums import sha256_file
from lorakit.evaluation.score_table import BASE, SCORES_FILE, Evaluation
from lorakit.evaluation.vote import run_vote
from lorakit.evaluation.vote.session import VoteSession
from lorakit.evaluation.vote.summary import VoteSummary
from lorakit.evaluation.vote.vote_file import VOTES_FILE, Choice, Vote, VoteFile
from tests.evaluation.simulated import Truth, simulate

CHOICES: dict[str, Choice] = {"+": "left", "-": "right", ".": "too_close", "x": "both_bad"}
EQUAL = (Truth(100, 0.2, 1.0), Truth(200, 0.7, 1.0), Truth(300, 0.7, 1.0))


def make_evaluation(root: Path, *, prompts: int = 8, truths: tuple[Truth, ...] = EQUAL) -> Evaluation:
    """Write scores.json and an image of each variant, prompt and seed to `root`."""
    evaluation = simulate(truths, subject=prompts, unrelated=2)
    for row, variant in enumerate(evaluation.variants):
        for column, file in enumerate(variant.files.values()):
            image = Image.new("RGB", (48, 40), (60 * row, column % 250, 120))
            ImageDraw.Draw(image).ellipse((8, 4, 30 + 4 * row, 34), fill=(250, 250 - column % 200, 80))
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            image.save(root / file)
    storage.write_json(root / SCORES_FILE, evaluation.to_json())
    return evaluation


def make_vote(number: int, prompt: str, choice: Choice, **changes: object) -> Vote:
    """Return a vote between `a` on the left and `b` on the right."""
    values = {
        "id": f"{number}",
        "voter": "",
        "prompt_id": prompt,
        "seed": 0,
        "left": "a",
        "right": "b",
        "choice": choice,
        "is_repeat": False,
        "image_hashes": ("", ""),
    }
    return Vote(**(values | changes))  # type: ignore[arg-type]


def cast_votes(
    root: Path,
    choices: str,
    pair: tuple[str, str] = ("step-200", "step-300"),
    *,
    variants: tuple[str, ...] = (),
    voter: str = "",
    is_repeat: bool = False,
) -> None:
    """Record votes on the prompts in turn (see `CHOICES`), the first of the pair on the left."""
    file = VoteFile(root)
    file.start_session(variants or pair)
    count = len({path.name.partition("-")[0] for path in (root / pair[0]).glob("s*.png")})
    with file.locked():
        for i, choice in enumerate(choices):
            prompt, seed = f"s{i % count}", i // count
            hashes = [sha256_file(root / name / f"{prompt}-{seed}.png") for name in pair]
            changes = {"left": pair[0], "right": pair[1], "voter": voter, "is_repeat": is_repeat}
            vote = make_vote(i, prompt, CHOICES[choice], seed=seed, **changes)
            file.append_vote(replace(vote, id=f"{voter}{i}{is_repeat}", image_hashes=(hashes[0], hashes[1])))


@dataclass
class Answer:
    """The status, headers and body of a response."""

    status: int
    headers: dict[str, str]
    data: bytes

    @property
    def text(self) -> str:
        """The body as text."""
        return self.data.decode()

    def field(self, name: str) -> str:
        """The value of a hidden field of the page's form."""
        match = re.search(rf'name="{name}" value="([^"]*)"', self.text)
        assert match, self.text
        return match[1]

    @property
    def images(self) -> list[str]:
        """The addresses of the two images."""
        return re.findall(r'<img src="(image/[^"]+)"', self.text)


class Client:
    """A browser without a window: requests to the address of a vote."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.host = urlsplit(address).netloc

    def request(
        self, path: str = "", form: dict[str, str] | None = None, *, raw: str | None = None, **headers: str
    ) -> Answer:
        """Send one request; `raw` is a target that is sent unchanged, `form` the fields of a POST."""
        connection = http.client.HTTPConnection(self.host, timeout=20)
        target = (
            raw
            if raw is not None
            else urlsplit(urljoin(self.address, path))._replace(scheme="", netloc="").geturl()
        )
        with contextlib.closing(connection):
            method, body = ("GET", None) if form is None else ("POST", urlencode(form))
            sent = {"Content-Type": "application/x-www-form-urlencoded", **headers}
            if form is not None:
                sent.setdefault("Origin", f"http://{self.host}")
            connection.putrequest(method, target, skip_host="Host" in sent)
            for name, value in sent.items():
                connection.putheader(name, value)
            if body is not None:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body.encode() if body else None)
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())

    def follow(self, answer: Answer) -> Answer:
        """Follow a redirection."""
        assert answer.status == 303, answer.text
        return self.request(answer.headers["location"])

    def page(self, voter: str = "", **query: str) -> Answer:
        """The page of a voter."""
        answer = self.request(f"?{urlencode({'voter': voter} | query)}")
        return self.follow(answer) if answer.status == 303 else answer

    def vote(self, choice: str, voter: str = "", position: str | None = None) -> Answer:
        """Vote on the pair that the page shows now, or on that at `position`."""
        if position is None:
            position = self.page(voter, more="1").field("position")
        form = {"voter": voter, "position": position, "choice": choice, "more": ""}
        return self.request("vote", form)


@contextlib.contextmanager
def serving(session: VoteSession, **options: object) -> Iterator[Client]:
    """Serve the page of a vote in a thread of this process until the block ends."""
    started, addresses = threading.Event(), []
    results: list[VoteSummary] = []

    def start(address: str) -> None:
        addresses.append(address)
        started.set()

    def run() -> None:
        results.append(run_vote.serve_vote(session, on_start=start, **options))  # type: ignore[arg-type]

    thread = threading.Thread(target=run)
    thread.start()
    assert started.wait(20)
    client = Client(addresses[0])
    try:
        yield client
    finally:
        with contextlib.suppress(OSError):
            client.request("finish", {})
        thread.join(20)
        assert not thread.is_alive()
        assert results


def open_session(root: Path, *names: str) -> VoteSession:
    """Open the vote on the named variants, by default steps 200 and 300, in the same order every time."""
    if not (root / VOTES_FILE).exists():
        row = {"type": "session", "variants": ["step-200", "step-300"], "seed": 4, "time": ""}
        storage.write_jsonl(root / VOTES_FILE, [row])
    return run_vote.open_session(root, names or ("200", "300"))


__all__ = ["BASE", "Answer", "Client", "make_evaluation", "make_vote", "open_session", "serving"]
