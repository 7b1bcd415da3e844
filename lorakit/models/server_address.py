"""Addresses of chat servers: cleaned, what could be meant instead, and why one cannot be reached."""

from __future__ import annotations

import contextlib
import ipaddress
import re
from collections.abc import Iterator
from urllib.request import getproxies

import httpx2

from lorakit.core.errors import ConfigError
from lorakit.models.chat_errors import ChatError, RetryableError, one_line

_ENDPOINTS = ("/chat/completions", "/completions", "/models", "/chat", "/responses")
_USUAL_PATHS = ("/v1", "/api/v1", "/openai/v1", "/v1beta/openai", "/api", "")
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # servers print the address on which they listen


def base_url(url: str, option: str) -> str:
    """Return the address without an endpoint such as /chat/completions; ConfigError for an unusable one."""
    remedy = "write it like http://127.0.0.1:8000/v1"
    try:
        parts = httpx2.URL(url.strip())
    except httpx2.InvalidURL as error:
        raise ConfigError(f"{url!r} is not a server's address", where=option, remedy=remedy) from error
    if parts.userinfo:
        remedy = f"put the key into an environment variable, and take it out of {option}"
        raise ConfigError("a server's address must not contain a password", where=option, remedy=remedy)
    if parts.query or parts.fragment:
        remedy = f"put a key into an environment variable, and take everything from the ? on out of {option}"
        raise ConfigError("a server's address must end before the question mark", where=option, remedy=remedy)
    if parts.scheme not in ("http", "https") or not parts.host:
        raise ConfigError(f"{url!r} is not a server's address", where=option, remedy=remedy)
    address = str(parts.copy_with(host=_ANY_ADDRESS.get(parts.host, parts.host))).rstrip("/")
    for endpoint in _ENDPOINTS:
        address = address.removesuffix(endpoint).rstrip("/")
    return address


def useful_addresses(url: str) -> Iterator[str]:
    """Yield addresses of the same server that could be meant, the usual ones first."""
    root = str(httpx2.URL(url).copy_with(path="/")).rstrip("/")
    for address in dict.fromkeys([f"{url}/v1", *(root + path for path in _USUAL_PATHS)]):
        if address != url:
            yield address


def transport_error(error: httpx2.RequestError, url: str, has_answered: bool) -> Exception:
    """Return the error for a request that got no answer: why, and whether another try may help."""
    text, is_https = one_line(error), url.startswith("https:")
    if isinstance(error, httpx2.DecodingError):
        return RetryableError(ChatError("invalid_response", f"the answer is damaged: {text}"))
    if re.search(r"CERTIFICATE_VERIFY_FAILED|certificate verify failed", text):
        reason = text.rpartition("certificate verify failed: ")[2]
        message = f"the server's certificate is not trusted: {reason}; name its file in SSL_CERT_FILE"
        return ChatError("unreachable", message, fatal=True)
    if (
        is_https
        and not has_answered
        and re.search(r"WRONG_VERSION|record layer|\bSSL\b.*EOF|PACKET_LENGTH", text)
    ):
        message = f"the server does not speak https: try http{url.removeprefix('https')}"
        return ChatError("unreachable", message, fatal=True)
    if isinstance(error, httpx2.ProxyError):
        return RetryableError(
            ChatError("unreachable", f"the proxy of HTTP_PROXY or HTTPS_PROXY fails: {text}")
        )
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
        through = f" through the proxy {proxy}" if (proxy := _proxy(url)) else ""
        return RetryableError(ChatError("unreachable", f"the server cannot be reached{through}: {text}"))
    hint = "" if is_https or has_answered else f" (perhaps it needs https{url.removeprefix('http')})"
    return RetryableError(ChatError("unreachable", f"the connection to the server broke off: {text}{hint}"))


def _proxy(url: str) -> str | None:
    """Return the proxy of the environment for an address; None without one, and on this machine."""
    parts = httpx2.URL(url)
    return None if is_loopback(parts.host) else getproxies().get(parts.scheme)


def is_loopback(host: str) -> bool:
    """Return True for this machine."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"
