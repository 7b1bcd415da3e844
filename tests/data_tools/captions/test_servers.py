"""Tests of the dialects of caption servers: what is stored, what is requested, why a request failed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_tools.captioners import CaptionerOptions
from data_tools.dataset import Dataset
from data_tools.prepare import PrepareOptions, caption_dataset
from lorakit.models import chat_client, chat_errors
from tests.data_tools.caption_server import ReceivedRequest, completion, serving_captions
from tests.data_tools.folders import fill

DOG = "A brown dog sits on the grass."


@pytest.fixture(autouse=True)
def _short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_client, "RETRY_DELAYS", (0.01, 0.01))
    monkeypatch.setattr(chat_errors, "LOADING_DELAY", 0.01)


def run(
    folder: Path, reply: Any, num_images: int = 4, **options: Any
) -> tuple[Dataset, list[ReceivedRequest]]:
    fill(folder, {f"{number}.png": None for number in range(num_images)}, size=(64, 64))
    with serving_captions(reply) as server:
        captioner = CaptionerOptions(server=server.url, timeout=5.0, concurrency=2)
        result = caption_dataset(folder, PrepareOptions(resolution=64, quiet=True, captioner=captioner))
        return result, server.requests


def captions(result: Dataset) -> set[str]:
    return {caption.text for record in result.records for caption in record.captions}


def reasons(result: Dataset) -> list[str]:
    return [finding.message for finding in result.findings if finding.code == "caption_failed"]


def message(**fields: Any) -> bytes:
    reason = fields.pop("finish_reason", "stop")
    return json.dumps({"choices": [{"message": fields, "finish_reason": reason}]}).encode()


def error(status: int, text: str, **fields: Any) -> tuple[int, dict[str, str], bytes]:
    return status, {}, json.dumps({"error": {"message": text, **fields}}).encode()


def events(*pieces: str) -> bytes:
    rows = [{"choices": [{"delta": {"content": piece}, "finish_reason": None}]} for piece in pieces]
    rows.append({"choices": [{"delta": {}, "finish_reason": "stop"}]})
    return b"".join(f"data: {json.dumps(row)}\n\n".encode() for row in rows) + b"data: [DONE]\n\n"


def refuses(
    *parameters: str, text: str = "Unsupported parameter: '{}' is not supported with this model."
) -> Any:
    def reply(request: ReceivedRequest) -> Any:
        named = next((name for name in parameters if name in request.body), None)
        return DOG if named is None else error(400, text.format(named))

    return reply


GOOD_SERVERS = {
    "plain": lambda request: DOG,
    "content in parts": lambda request: completion([{"type": "text", "text": DOG}]),
    "reasoning apart": lambda request: message(content=DOG, reasoning_content="A dog, I think."),
    "reasoning inside": lambda request: f"<think>A dog, I think.</think>\n{DOG}",
    "chat markup": lambda request: f"<|im_start|>assistant\n{DOG}<|im_end|>",
    "JSON": lambda request: json.dumps({"caption": DOG}),
    "JSON in a code block": lambda request: f'```json\n{{"caption": "{DOG}"}}\n```',
    "Markdown": lambda request: f'**Caption:** "{DOG}"',
    "introduction": lambda request: f"Sure! Here is a caption:\n\n{DOG}",
    "only max_completion_tokens": refuses(
        "max_tokens",
        text="Unsupported parameter: '{}' is not supported. Use 'max_completion_tokens' instead.",
    ),
    "no length limit at all": refuses("max_tokens", "max_completion_tokens"),
    "only its own temperature": refuses("temperature", text="'{}' does not support 0, only the default (1)."),
    "neither temperature nor length": refuses("temperature", "max_tokens", "max_completion_tokens"),
    "extra inputs forbidden": refuses("temperature", text="{}: Extra inputs are not permitted"),
    "server-sent events": lambda request: events("A brown dog ", "sits on ", "the grass."),
    "events only on request": lambda request: (
        events(DOG) if request.body.get("stream") else error(400, "stream must be set to true")
    ),
    "an error with status 200 first": lambda request: (
        json.dumps({"error": {"code": 503, "message": "overloaded"}}).encode() if request.number == 0 else DOG
    ),
    "a busy server first": lambda request: error(503, "loading the model") if request.number == 0 else DOG,
}


@pytest.mark.parametrize("name", GOOD_SERVERS)
def test_a_servers_dialect_is_understood(tmp_path: Path, name: str) -> None:
    result, requests = run(tmp_path, GOOD_SERVERS[name])
    assert captions(result) == {DOG}
    assert not reasons(result)
    assert len(requests) <= 4 + 4  # a refused parameter is not sent again and again


BAD_SERVERS: dict[str, tuple[Any, str, int]] = {
    "reasoning that takes all tokens": (
        lambda request: message(content="", reasoning_content="A dog", finish_reason="length"),
        "raise --max-tokens",
        4,
    ),
    "reasoning that is cut off": (lambda request: "<think>A dog, I", "raise --max-tokens", 4),
    "no text": (lambda request: "", "no text", 4),
    "JSON without a caption": (lambda request: '{"tags": {"a": 1}}', "its keys: tags", 4),
    "an error with status 200": (
        lambda request: json.dumps({"error": "the model crashed"}).encode(),
        "the model crashed",
        4,
    ),
    "no credit, status 402": (lambda request: error(402, "payment required"), "no credit", 1),
    "no credit, status 429": (
        lambda request: error(429, "You exceeded your quota", code="insufficient_quota"),
        "no credit",
        1,
    ),
    "no credit, status 200": (
        lambda request: json.dumps({"error": {"code": "insufficient_quota", "message": "x"}}).encode(),
        "no credit",
        1,
    ),
    "wrong key": (lambda request: error(401, "invalid key"), "refuses the key", 1),
    "unknown model": (lambda request: error(404, "no such model"), "no such address or model", 1),
    "an image that is too large": (lambda request: error(400, "image too large"), "image too large", 4),
    "HTML": (lambda request: b"<html>Bad gateway</html>", "not JSON", 12),
}


@pytest.mark.parametrize("name", BAD_SERVERS)
def test_a_failure_has_its_reason_and_stores_nothing(tmp_path: Path, name: str) -> None:
    reply, words, most_requests = BAD_SERVERS[name]
    result, requests = run(tmp_path, reply)
    assert not captions(result)
    assert any(words in reason for reason in reasons(result))
    assert len(requests) <= most_requests


@pytest.mark.parametrize(
    "refusal",
    [
        "I'm really sorry, but I can't help with that.",
        "Unfortunately, I can't describe this image.",
        "抱歉，我无法描述这张图片。",
        "申し訳ありませんが、説明できません。",
        "Lo siento, pero no puedo ayudar.",
        "Es tut mir leid, aber das kann ich nicht beschreiben.",
        "Je suis désolé, je ne peux pas décrire cette image.",
        "<think>Not allowed.</think>I must decline to describe this image.",
        '{"caption": "I cannot describe people."}',
    ],
)
def test_a_refusal_is_not_stored_as_a_caption(tmp_path: Path, refusal: str) -> None:
    result, _ = run(tmp_path, lambda request: refusal, 2)
    assert not captions(result)
    assert any("refused" in reason for reason in reasons(result))


def test_a_server_that_is_not_there_is_asked_once_and_named(tmp_path: Path) -> None:
    fill(tmp_path, {f"{number}.png": None for number in range(5)}, size=(64, 64))
    captioner = CaptionerOptions(server="http://127.0.0.1:9/v1", model="m", timeout=5.0)
    result = caption_dataset(tmp_path, PrepareOptions(resolution=64, quiet=True, captioner=captioner))
    (reason,) = reasons(result)
    assert "the server cannot be reached" in reason
    assert "the server cannot be reached" in result.summary()
