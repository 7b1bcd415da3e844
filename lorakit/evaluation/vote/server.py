"""The local server of a vote: forms and images for one browser on this machine.

Only addresses of this machine are served (a page of another site whose name leads here is refused), only
below a random token, and only images that the evaluation lists. No request leaves the machine.
"""

from __future__ import annotations

import io
import secrets
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lorakit.core import input_files
from lorakit.core.errors import LorakitError
from lorakit.core.visible_text import escape_name
from lorakit.evaluation.vote import pages
from lorakit.evaluation.vote.session import VoteSession
from lorakit.evaluation.vote.vote_file import CHOICES
from lorakit.imaging.decode import MAX_FILE_BYTES, decode_image
from lorakit.imaging.signatures import image_suffix

LOCAL_NAMES = ("127.0.0.1", "localhost", "::1")
POLICY = (
    "default-src 'none'; img-src 'self'; style-src 'self'; script-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # without any, browsers send no origin with a form either
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_MAX_FORM_BYTES = 4096
_MEDIA_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".webp": "image/webp", ".gif": "image/gif"}
_STATIC = {"style.css": "text/css", "keys.js": "text/javascript", "icon.svg": "image/svg+xml"}
_LATE = "This pair was voted on already, in another window or by a double click; here is the next one."


def create_app(session: VoteSession, token: str, on_finish: Callable[[], None], voter: str = "") -> Starlette:
    """Return the application; `on_finish` is called when a voter closes it, `voter` is the first name."""
    handlers = _Handlers(session, on_finish, voter)
    routes = [
        Route("/", handlers.vote),
        Route("/vote", handlers.cast, methods=["POST"]),
        Route("/undo", handlers.undo, methods=["POST"]),
        Route("/result", handlers.result),
        Route("/finish", handlers.finish, methods=["POST"]),
        Route("/image/{position:int}/{side}", handlers.image),
        Route("/reference/{number:int}", handlers.reference),
        *(Route(f"/{name}", handlers.static) for name in _STATIC),
    ]
    return Starlette(
        routes=[Mount(f"/{token}", routes=routes)],
        middleware=[Middleware(LocalOnly)],
        exception_handlers={LorakitError: _error_page, OSError: _error_page},
    )


def new_token() -> str:
    """Return a secret for the address, which other users of this machine cannot guess."""
    return secrets.token_urlsafe(16)


class LocalOnly:
    """Refuses requests that a page of another site could have sent, and adds the security headers."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name for name, _ in message["headers"]}
                message["headers"] += [
                    (name.lower().encode(), value.encode())
                    for name, value in HEADERS.items()
                    if name.lower().encode() not in present
                ]
            await send(message)

        is_local = _is_local(Request(scope))
        answer: ASGIApp = self.app if is_local else _refusal("This page is for this machine only.", 403)
        await answer(scope, receive, send_with_headers)


def _is_local(request: Request) -> bool:
    """Return True if host and origin, as far as the browser names them, are this server's."""
    hosts, origins = request.headers.getlist("host"), request.headers.getlist("origin")
    if len(hosts) != 1 or len(origins) > 1 or _host_name(hosts[0]) not in LOCAL_NAMES:
        return False
    return all(origin == f"http://{hosts[0]}" for origin in origins)


def _host_name(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _refusal(text: str, status: int) -> HTMLResponse:
    return HTMLResponse(pages.closed_page("Refused", text), status)


async def _error_page(request: Request, error: Exception) -> Response:
    return HTMLResponse(pages.closed_page("The vote cannot continue", str(error)), 500)


class _Handlers:
    """The answers to the requests; each reads the votes again, so that windows and processes agree."""

    def __init__(self, session: VoteSession, on_finish: Callable[[], None], voter: str) -> None:
        self.session, self.on_finish, self.default_voter = session, on_finish, voter

    async def vote(self, request: Request) -> Response:
        """Show the next pair, or the result if the test has ended or no pair is left."""
        query = request.query_params
        voter = self._voter(query.get("voter"))
        more, state = query.get("more") == "1", self.session.state(voter)
        if state.position is None or (self.session.summary().has_ended and not more):
            return self._redirect("result", voter)
        notice = _LATE if query.get("late") == "1" else ""
        return _page(pages.vote_page(self.session, voter, state, more=more, notice=notice))

    async def cast(self, request: Request) -> Response:
        """Record a vote and go to the next pair."""
        form = await _read_form(request)
        voter, position, choice = self._voter(form.get("voter")), form.get("position", ""), form.get("choice")
        if choice not in CHOICES or not position.isdecimal():
            return _refusal("The form is incomplete.", 400)
        is_counted = self.session.cast(voter, int(position), choice)
        return self._redirect("./", voter, more=form.get("more", ""), late="" if is_counted else "1")

    async def undo(self, request: Request) -> Response:
        """Take the last vote back and show its pair again."""
        form = await _read_form(request)
        voter = self._voter(form.get("voter"))
        self.session.undo(voter)
        return self._redirect("./", voter, more=form.get("more", ""))

    async def result(self, request: Request) -> Response:
        """Show the result so far."""
        voter = self._voter(request.query_params.get("voter"))
        state, summary = self.session.state(voter), self.session.summary()
        return _page(pages.result_page(self.session, voter, state, summary))

    async def finish(self, request: Request) -> Response:
        """Close the server after this answer."""
        await _read_form(request)
        text = "The votes are saved; the result is in the terminal. This window can be closed."
        page = pages.closed_page("Finished", text)
        return HTMLResponse(page, background=BackgroundTask(self.on_finish))

    async def image(self, request: Request) -> Response:
        """Send one side of a pair; its address names neither variant nor file."""
        voter = self._voter(request.query_params.get("voter"))
        position, side = request.path_params["position"], request.path_params["side"]
        try:
            file = self.session.image_file(voter, position, side)
        except (IndexError, KeyError):
            return _refusal("There is no such image.", 404)
        return _image_response(file)

    async def reference(self, request: Request) -> Response:
        """Send a reference image."""
        try:
            return _image_response(self.session.references[request.path_params["number"]])
        except IndexError:
            return _refusal("There is no such image.", 404)

    async def static(self, request: Request) -> Response:
        """Send the style sheet, the script or the icon."""
        name = request.url.path.rpartition("/")[2]
        return Response(pages.static_file(name), media_type=_STATIC[name])

    def _voter(self, name: str | None) -> str:
        text = self.default_voter if name is None else name
        return normalize_name(text)

    def _redirect(self, path: str, voter: str, **query: str) -> Response:
        values = {"voter": voter} | {name: value for name, value in query.items() if value}
        return RedirectResponse(f"{path}?{urlencode(values)}", 303)


def normalize_name(name: str) -> str:
    """Return a voter's name on one line, without control characters, of limited length."""
    return escape_name(" ".join(name.split()))[: pages.MAX_NAME_LENGTH]


def _page(text: str) -> HTMLResponse:
    return HTMLResponse(text, headers={"Cache-Control": "no-store"})


async def _read_form(request: Request) -> dict[str, str]:
    """Return the fields of a form, the first value of each; a body that is too long is cut off."""
    data = b""
    async for part in request.stream():
        data = (data + part)[:_MAX_FORM_BYTES]
    fields = parse_qs(data.decode("utf-8", "replace"), max_num_fields=20)
    return {name: values[0] for name, values in fields.items()}


def _image_response(file: Path) -> Response:
    """Return an image as browsers show it: formats that they lack are sent as PNG."""
    data = input_files.read_regular(file, MAX_FILE_BYTES)
    media_type = _MEDIA_TYPES.get(image_suffix(data[:16]))
    if media_type is None:
        buffer = io.BytesIO()
        decode_image(file, first_frame=True).save(buffer, format="PNG")
        data, media_type = buffer.getvalue(), "image/png"
    return Response(data, media_type=media_type, headers={"Cache-Control": "private, max-age=3600"})
