"""Tests of the dialects of caption servers: what is stored, what is requested, why a request failed."""

from __future__ import annotations

import gzip
import json
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest

from data_tools.captioners import CaptionerOptions, load_captioner
from data_tools.captions.generate import CaptioningOptions
from data_tools.dataset import Dataset
from data_tools.prepare import PrepareOptions, caption_dataset
from lorakit.core.errors import ConfigError
from lorakit.models import chat_client, chat_errors
from tests.data_tools.caption_server import ReceivedRequest, completion, serving_captions
from tests.data_tools.captions.answer_samples import DOG, REFUSALS, UNUSABLE, WRAPPED
from tests.data_tools.folders import fill


@pytest.fixture(autouse=True)
def _short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_client, "RETRY_DELAYS", (0.01, 0.01))
    monkeypatch.setattr(chat_errors, "LOADING_DELAY", 0.01)


def run(
    folder: Path,
    reply: Any,
    num_images: int = 4,
    *,
    size: tuple[int, int] = (64, 64),
    quiet: bool = True,
    num_answers: int = 1,
) -> tuple[Dataset, list[ReceivedRequest]]:
    fill(folder, {f"{number}.png": None for number in range(num_images)}, size=size)
    with serving_captions(reply) as server:
        captioner = CaptionerOptions(server=server.url, timeout=5.0, concurrency=2)
        captioning = CaptioningOptions(captions_per_prompt=num_answers)
        options = PrepareOptions(resolution=64, quiet=quiet, captioner=captioner, captioning=captioning)
        return caption_dataset(folder, options), server.requests


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
    "thoughts in a part of their own": lambda request: completion(
        [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": DOG}]
    ),
    "the older protocol": lambda request: json.dumps({"choices": [{"text": DOG}]}).encode(),
    "Ollama's own protocol": lambda request: json.dumps({"message": {"content": DOG}, "done": True}).encode(),
    "compressed": lambda request: (200, {"Content-Encoding": "gzip"}, gzip.compress(completion(DOG))),
    "events with comments": lambda request: b": processing\r\n\r\n" + events(DOG).replace(b"\n", b"\r\n"),
    "events without empty lines": lambda request: events("A brown dog ", "sits on the grass.").replace(
        b"\n\n", b"\n"
    ),
    "a parameter refused as FastAPI does": lambda request: (
        (422, {}, b'{"detail": [{"loc": ["body", "temperature"], "msg": "Extra inputs are not permitted"}]}')
        if "temperature" in request.body
        else DOG
    ),
    "a parameter refused in plain text": lambda request: (
        (400, {}, b"unsupported parameter: temperature") if "temperature" in request.body else DOG
    ),
    "a model that loads": lambda request: (
        (503, {}, b'{"error": "Model m is currently loading", "estimated_time": 0.01}')
        if request.number < 6
        else DOG
    ),
    "a delay in words": lambda request: (
        error(429, "Rate limit reached. Please try again in 0.02s.") if request.number == 0 else DOG
    ),
    "a connection that breaks off once": lambda request: None if request.number == 1 else DOG,
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
    assert len(requests) <= 4 + 6  # a refused parameter is not sent again and again


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
    "HTML": (lambda request: b"<html><title>Open WebUI</title></html>", "a web page, 'Open WebUI'", 12),
    "the page of a gateway": (
        lambda request: (502, {}, b"<html><head><title>502 Bad Gateway</title></head></html>"),
        "a web page, '502 Bad Gateway'",
        12,
    ),
    "no images, llama.cpp": (
        lambda request: error(500, "image input is not supported - hint: you may need to provide the mmproj"),
        "the model reads no images",
        1,
    ),
    "no images, vLLM": (
        lambda request: error(400, "At most 0 image(s) may be provided in one request."),
        "the model reads no images",
        1,
    ),
    "no images, DeepSeek": (
        lambda request: error(400, "messages[0]: unknown variant `image_url`, expected `text`"),
        "the model reads no images",
        1,
    ),
    "a wrong key, as a list": (
        lambda request: (400, {}, b'[{"error": {"code": 400, "message": "API key not valid."}}]'),
        "refuses the key: API key not valid",
        1,
    ),
    "flagged, status 403": (lambda request: error(403, "flagged by moderation"), "refused: flagged", 4),
    "filtered, status 400": (
        lambda request: error(400, "The response was filtered", code="content_filter"),
        "refused: The response was filtered",
        4,
    ),
    "filtered, by its finish reason": (
        lambda request: message(content=None, finish_reason="SAFETY"),
        "filtered by the server",
        4,
    ),
    "filtered, without choices": (
        lambda request: b'{"choices": [], "prompt_feedback": {"block_reason": "OTHER"}}',
        "filtered by the server",
        4,
    ),
    "a refusal in a part": (
        lambda request: completion([{"type": "refusal", "refusal": "not this one"}]),
        "refused: not this one",
        4,
    ),
    "a call of a tool": (
        lambda request: message(content=None, tool_calls=[{"function": {"name": "look"}}]),
        "calls a tool (look)",
        4,
    ),
    "no choices": (lambda request: b'{"choices": []}', "no choices[0].message", 4),
    "an error within a choice": (
        lambda request: b'{"choices": [{"error": {"message": "upstream failed"}, "message": null}]}',
        "upstream failed",
        4,
    ),
    "a quota for hours": (
        lambda request: (429, {"Retry-After": "7200"}, b'{"error": "daily quota"}'),
        "it asks to wait 2:00:00",
        1,
    ),
    "a model too large for the server": (
        lambda request: error(500, "model requires more system memory (9.1 GiB) than is available"),
        "more system memory",
        1,
    ),
    "another address": (
        lambda request: (301, {"Location": "https://example.org/v1"}),
        "sends to another address, 'https://example.org/v1'",
        4,
    ),
    "a damaged body": (
        lambda request: (200, {"Content-Encoding": "gzip"}, b"not gzip"),
        "the answer is damaged",
        12,
    ),
    "connections that break off": (lambda request: None, "broke off", 9),
}


@pytest.mark.parametrize("name", BAD_SERVERS)
def test_a_failure_has_its_reason_and_stores_nothing(tmp_path: Path, name: str) -> None:
    reply, words, most_requests = BAD_SERVERS[name]
    result, requests = run(tmp_path, reply)
    assert not captions(result)
    assert any(words in reason for reason in reasons(result))
    assert len(requests) <= most_requests


def test_no_markup_and_no_refusal_of_many_answers_is_stored(tmp_path: Path) -> None:
    """One server, and answers in turn that hold a description and that do not."""
    unusable = [*UNUSABLE.values(), *REFUSALS]
    answers = [answer for pair in zip_longest(WRAPPED.values(), unusable, fillvalue=DOG) for answer in pair]
    answers += [DOG] * (-len(answers) % 4)
    result, requests = run(
        tmp_path, lambda request: answers[request.number], 4, num_answers=len(answers) // 4
    )
    assert len(requests) == len(answers)
    assert captions(result) == {DOG}
    assert result.captioning is not None
    assert result.captioning.num_answered == len(answers) - len(unusable)
    assert result.captioning.failures.total() == len(unusable)
    refused = {reason for reason in result.captioning.failures if reason.startswith("refused")}
    assert len(refused) >= len(REFUSALS)


def test_an_image_that_is_too_large_is_sent_smaller(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def reply(request: ReceivedRequest) -> Any:
        return DOG if max(request.image.size) <= 300 else (413, {}, b"<html>Request Entity Too Large</html>")

    result, requests = run(tmp_path, reply, 3, size=(900, 600))
    assert captions(result) == {DOG}
    assert len(requests) <= 3 + 4  # what the server takes is known after the first images
    assert min(max(request.image.size) for request in requests) == 256
    assert "they are sent with at most 256" in caplog.text


def test_a_missing_part_of_the_address_is_named(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": None}, size=(64, 64))
    with serving_captions(lambda request: DOG) as server:
        server.path = "/v1/"
        captioner = CaptionerOptions(server=server.url.removesuffix("/v1"), model="m", timeout=5.0)
        result = caption_dataset(tmp_path, PrepareOptions(resolution=64, quiet=True, captioner=captioner))
        assert f"the address is {server.url}" in reasons(result)[0]
        with pytest.raises(ConfigError, match=f"the address is {server.url}"):
            load_captioner(CaptionerOptions(server=server.url.removesuffix("/v1"), timeout=5.0))


def test_an_unknown_model_is_answered_with_the_models_of_the_server(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": None, "b.png": None}, size=(64, 64))
    with serving_captions(lambda request: error(404, "model 'typo' not found")) as server:
        server.models = ["qwen2.5-vl", "joycaption"]
        captioner = CaptionerOptions(server=server.url, model="typo", timeout=5.0)
        result = caption_dataset(tmp_path, PrepareOptions(resolution=64, quiet=True, captioner=captioner))
        assert "its models: qwen2.5-vl, joycaption (--model)" in reasons(result)[0]
        assert len(server.requests) == 1


def test_a_server_that_ends_in_the_middle_stops_the_command(tmp_path: Path) -> None:
    result, requests = run(tmp_path, lambda request: DOG if request.number < 5 else None, 40)
    assert sum(bool(record.captions) for record in result.records) == 5
    assert len(requests) <= 5 + 3 * (3 + 4)
    assert "broke off" in reasons(result)[0]


def test_tokens_are_summed_and_failures_counted(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def reply(request: ReceivedRequest) -> Any:
        if request.number == 1:
            return error(400, "no")
        usage = {"prompt_tokens": 100, "completion_tokens": 7}
        return json.dumps(
            {"choices": [{"message": {"content": f"{DOG} {request.number}"}}], "usage": usage}
        ).encode()

    result, _ = run(tmp_path, reply, 4, quiet=False)
    captioner = result.counts()["captioner"]
    failures = {"http_400: the server answered with status 400: no": 1}
    numbers = {"known": 0, "requested": 4, "answered": 3, "prompt_tokens": 300, "answer_tokens": 21}
    assert captioner == numbers | {"failures": failures}
    assert "3 of 4 requests answered, 300 tokens sent, 21 received" in result.summary()
    assert "no caption: http_400: the server answered with status 400: no" in capfd.readouterr().err


def test_a_server_that_is_not_there_is_asked_once_and_named(tmp_path: Path) -> None:
    fill(tmp_path, {f"{number}.png": None for number in range(5)}, size=(64, 64))
    captioner = CaptionerOptions(server="http://127.0.0.1:9/v1", model="m", timeout=5.0)
    result = caption_dataset(tmp_path, PrepareOptions(resolution=64, quiet=True, captioner=captioner))
    (reason,) = reasons(result)
    assert "the server cannot be reached" in reason
    assert "the server cannot be reached" in result.summary()
