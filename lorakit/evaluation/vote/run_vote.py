"""`lorakit eval vote`: the server of a vote from its start to the summary at its end."""

from __future__ import annotations

import contextlib
import socket
import threading
import webbrowser
from collections.abc import Callable, Sequence
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from lorakit.core.errors import ConfigError
from lorakit.evaluation.score_table import Evaluation, find_evaluation_folder, load_evaluation
from lorakit.evaluation.select import Selection, select_checkpoint
from lorakit.evaluation.vote.plan import choose_variants
from lorakit.evaluation.vote.server import create_app, new_token, normalize_name
from lorakit.evaluation.vote.session import VoteSession
from lorakit.evaluation.vote.summary import VoteSummary

HOST = "127.0.0.1"
_CLOSING_SECONDS = 3  # for answers that are being sent when the server ends


def open_session(folder: str | Path, variants: Sequence[str] = ()) -> VoteSession:
    """Return the vote on an evaluation, which is the run's or in `folder`; an earlier vote continues.

    `variants` are two or three names; without them the vote is about those that the scores cannot
    distinguish. Raises DataError if there are no images to compare, ConfigError for unknown names.
    """
    root = find_evaluation_folder(folder)
    evaluation = load_evaluation(root)
    choice = choose_variants(evaluation, _selection(evaluation) if not variants else None, variants)
    return VoteSession(evaluation, root, choice)


def _selection(evaluation: Evaluation) -> Selection | None:
    return select_checkpoint(evaluation) if evaluation.base and evaluation.adapter_variants else None


def serve_vote(
    session: VoteSession,
    *,
    port: int = 0,
    voter: str = "",
    open_browser: bool = False,
    on_start: Callable[[str], None],
) -> VoteSummary:
    """Serve the page until Ctrl+C or until a voter finishes; return the result.

    `port` 0 is any free one. `on_start` is called with the address once the server answers. Raises
    ConfigError if the port is in use.
    """

    def finish() -> None:
        server.should_exit = True

    with _listen(port) as listener:
        token = new_token()
        address = f"http://{HOST}:{listener.getsockname()[1]}/{token}/"
        app = create_app(session, token, finish, normalize_name(voter))
        server = _AnnouncedServer(_server_config(app), lambda: _announce(address, open_browser, on_start))
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn repeats Ctrl+C after it has closed
            server.run(sockets=[listener])
    return session.summary()


def _listen(port: int) -> socket.socket:
    try:
        return socket.create_server((HOST, port))
    except (OSError, OverflowError) as error:
        remedy = "use another --port, or leave it out for any free one"
        raise ConfigError(f"cannot listen on port {port}: {error}", where="--port", remedy=remedy) from error


def _announce(address: str, open_browser: bool, on_start: Callable[[str], None]) -> None:
    on_start(address)
    if open_browser:  # in a thread: some browsers run in the terminal until they are closed
        threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()


class _AnnouncedServer(uvicorn.Server):
    """Calls `on_start` as soon as it answers."""

    def __init__(self, config: uvicorn.Config, on_start: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_start = on_start

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to answer."""
        await super().startup(sockets)
        self._on_start()


def _server_config(app: Starlette) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http="h11",
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=100,
        timeout_graceful_shutdown=_CLOSING_SECONDS,
    )
