"""The client of chat servers, against real servers on loopback."""

from __future__ import annotations

import time
from email.utils import formatdate
from functools import partial

import pytest
from PIL import Image

from lorakit.models import chat_client
from lorakit.models.chat_client import ChatClient
from lorakit.models.chat_errors import ChatError
from tests.data_tools.caption_server import serving_captions

KEY_VARIABLE = "LORAKIT_TEST_KEY"
KEY = "canary-5517"


@pytest.fixture(autouse=True)
def short_delays(monkeypatch):
    monkeypatch.setattr(chat_client, "RETRY_DELAYS", (0.01,))
    monkeypatch.setenv(KEY_VARIABLE, KEY)


def complete(url: str, **options):
    client = ChatClient(url, api_key_env=KEY_VARIABLE, timeout=5.0)
    return client.complete("m", "what?", Image.new("RGB", (8, 8)), max_tokens=5, **options)


def test_a_redirect_is_an_error_and_the_key_is_not_sent_on():
    with serving_captions(lambda request: "a wall") as other:
        redirect = (307, {"Location": f"{other.url}/chat/completions"})
        with serving_captions(lambda request: redirect) as server, pytest.raises(ChatError) as caught:
            complete(server.url)
        assert (caught.value.code, len(server.requests), other.requests) == ("http_307", 1, [])


def test_the_key_is_masked_in_answers_and_errors():
    with serving_captions(lambda request: f"a wall with {KEY}") as server:
        assert complete(server.url).text == "a wall with [key]"
    body = b'{"error": {"message": "wrong key ' + KEY.encode() + b'\\u001b[2J"}}'
    with serving_captions(lambda request: (401, {}, body)) as server, pytest.raises(ChatError) as caught:
        complete(server.url)
    assert caught.value.message == "the server refuses the key: wrong key [key][2J"
    assert caught.value.fatal


def _status_reply(status: int, request) -> int:
    return status


def test_a_status_is_retried_only_if_that_may_help():
    for status, tries in ((503, 2), (429, 2), (400, 1), (404, 1)):
        reply = partial(_status_reply, status)
        with serving_captions(reply) as server, pytest.raises(ChatError) as caught:
            complete(server.url)
        assert (caught.value.code, len(server.requests)) == (f"http_{status}", tries)


def test_a_retry_date_is_honoured():
    in_two_seconds = formatdate(time.time() + 2, usegmt=True)
    replies = [(429, {"Retry-After": in_two_seconds}), "a wall"]
    with serving_captions(lambda request: replies[request.number]) as server:
        start = time.monotonic()
        assert complete(server.url).text == "a wall"
    assert 0.5 < time.monotonic() - start < 4


def test_a_cancelled_client_does_not_wait(monkeypatch):
    monkeypatch.setattr(chat_client, "RETRY_DELAYS", (60.0,))
    with serving_captions(lambda request: 503) as server:
        client = ChatClient(server.url, api_key_env=KEY_VARIABLE)
        client.cancel()
        with pytest.raises(ChatError):
            client.complete("m", "?", Image.new("RGB", (8, 8)), max_tokens=1)
    assert len(server.requests) == 1


def test_a_too_long_answer_is_refused(monkeypatch):
    monkeypatch.setattr(chat_client, "MAX_RESPONSE_BYTES", 1000)
    with serving_captions(lambda request: "x" * 2000) as server, pytest.raises(ChatError) as caught:
        complete(server.url)
    assert (caught.value.code, len(server.requests)) == ("invalid_response", 1)
    assert "longer than 1000 bytes" in caught.value.message


def test_images_are_sent_as_jpeg_or_lossless_as_png():
    kinds = []
    with serving_captions(lambda request: "a wall") as server:
        for lossless in (False, True):
            complete(server.url, lossless=lossless)
            content = server.requests[-1].body["messages"][0]["content"]
            assert [part["type"] for part in content] == ["image_url", "text"]
            kinds.append(content[0]["image_url"]["url"].partition(";")[0])
    assert kinds == ["data:image/jpeg", "data:image/png"]
