"""Secrets in errors, logs and answers of servers are masked; plain words are not."""

from __future__ import annotations

import base64
import json
from urllib.parse import quote

import pytest

from lorakit.core.errors import DataError, first_line
from lorakit.core.secret_text import mask_secrets, mask_value

KEY = "sk-Ab/12345+67890=canary"


@pytest.mark.parametrize(
    "form",
    [
        KEY,
        KEY.upper(),
        quote(KEY, safe=""),
        json.dumps(KEY)[1:-1],
        base64.b64encode(KEY.encode()).decode().rstrip("="),
        f"Bearer {KEY}",
        KEY[:-4],
        f"b'Bearer {KEY}\\n'",
    ],
)
def test_a_given_secret_is_masked_in_every_form(form: str) -> None:
    masked = mask_secrets(f"the server says: wrong key {form}!", KEY)
    assert "canary" not in masked.lower()
    assert "12345" not in masked
    assert "[key]" in masked
    assert masked.startswith("the server says: wrong key ")


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("https://me:hunter22@host/v1 fails", "https://[key]@host/v1 fails"),
        ("GET http://h/v1?api_key=xyz1&model=m", "GET http://h/v1?api_key=[key]&model=m"),
        ("http://h/?a=1&access_token=q#x", "http://h/?a=1&access_token=[key]#x"),
        ("Authorization: Basic dXNlcjpwYXNz", "Authorization: Basic [key]"),
        ("Bearer abc.def.123456", "Bearer [key]"),
        ("token hf_abcdefghijklmnop is not valid", "token [key] is not valid"),
        ("x-api-key: 9f8e7d6c5b", "x-api-key: [key]"),
    ],
)
def test_what_has_the_form_of_a_secret_is_masked(text: str, masked: str) -> None:
    assert mask_secrets(text) == masked


@pytest.mark.parametrize("name", ["HF_TOKEN", "WANDB_API_KEY", "MY_PASSWORD", "aws_secret_access_key"])
def test_secrets_of_the_environment_are_masked(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "zebra-violin-99")
    assert mask_secrets("refused: zebra-violin-99") == "refused: [key]"
    error = DataError("refused: zebra-violin-99", where="x/zebra-violin-99", remedy="not zebra-violin-99")
    assert "violin" not in str(error) + error.message
    assert first_line(ValueError("zebra-violin-99\nmore")) == "[key]"


@pytest.mark.parametrize(
    "text",
    [
        "a ring bearer walking",
        "basic geometry on paper",
        "the key of the house",
        "/home/me/key.pem",
        "a token",
    ],
)
def test_plain_words_stay(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_KEY", "/home/me/key.pem")
    monkeypatch.setenv("SHORT_KEY", "house")
    assert mask_secrets(text) == mask_value(text, "EMPTY") == text


def test_only_known_secrets_are_masked_in_captions() -> None:
    value = {"choices": [{"text": f"an empty room, bearer 12345678, {KEY}", "n": 1}]}
    masked = mask_value(value, KEY, "EMPTY")
    assert masked == {"choices": [{"text": "an empty room, bearer 12345678, [key]", "n": 1}]}
