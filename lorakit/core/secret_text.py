"""Secrets masked in text that is stored or printed: keys, tokens and passwords.

Servers repeat a key in their errors, libraries print addresses with passwords, and an error ends up in a
manifest, a log or a report that is shared.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote

MASK = "[key]"
MIN_LENGTH = 8  # characters of a secret; shorter ones, such as the key EMPTY of local servers, are words
_MIN_ERROR_LENGTH = 4
_SECRET_NAME = re.compile(r"(?:^|_)(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
_QUERY_NAMES = "(?:access_|auth_|api[_-]?|refresh_|id_)?(?:key|token|secret|signature|sig|password|passwd)"
_TOKEN = r"(?=[\w.~+/=%-]*\d|[\w.~+/=%-]{20})[\w.~+/=%-]{6,}"  # with a digit, or too long for a word
_PATTERNS = (
    (re.compile(rf"(?i)\b(bearer|basic)(\s+|%20){_TOKEN}"), rf"\1\2{MASK}"),
    (re.compile(r"(?i)\b(authorization\W{1,4}(?:basic|bearer|token)?\s*)[\w.~+/=%-]{6,}"), rf"\1{MASK}"),
    (re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://)[^/\s@'\"<>]+@"), rf"\1{MASK}@"),
    (re.compile(rf"(?i)([?&;](?:x-)?{_QUERY_NAMES}=)[^&\s'\"<>#]+"), rf"\1{MASK}"),
    (re.compile(rf"(?i)\b((?:x-)?api[_ -]?key|authorization)(\s*[:=]\s*|\s+){_TOKEN}"), rf"\1\2{MASK}"),
    (re.compile(r"\b(?:sk-|hf_|ghp_|gho_|github_pat_|xox[abp]-|AKIA|AIza)[\w-]{12,}"), MASK),
)


def mask_secrets(text: str, *secrets: str) -> str:
    """Return the text of an error without secrets: given ones, those of the environment, and what looks so.

    That is `Bearer KEY`, `user:password@host` and `?api_key=KEY` in an address, and known prefixes such as
    `sk-` and `hf_`. Given secrets are also masked in their usual encodings, and if only their beginning is
    there. Variables of the environment count if their name ends in KEY, TOKEN, SECRET or PASSWORD.
    """
    text = _without_known(text, [secret for secret in secrets if len(secret) >= _MIN_ERROR_LENGTH])
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def mask_value(value: Any, *secrets: str) -> Any:
    """Return a JSON value without the given secrets and those of the environment, in any of its texts.

    Nothing else is masked: the texts may be captions, in which "ring bearer" are plain words.
    """
    if isinstance(value, str):
        return _without_known(value, [secret for secret in secrets if len(secret) >= MIN_LENGTH])
    if isinstance(value, list):
        return [mask_value(item, *secrets) for item in value]
    if isinstance(value, dict):
        return {mask_value(key, *secrets): mask_value(item, *secrets) for key, item in value.items()}
    return value


def _without_known(text: str, secrets: Sequence[str]) -> str:
    for secret in sorted(secrets, key=len, reverse=True):
        text = _without_secret(text, secret)
    for secret in _environment_secrets():
        text = text.replace(secret, MASK)
    return text


def _environment_secrets() -> Iterator[str]:
    """Yield the secrets of the environment; paths, such as that of a key file, are none."""
    for name, value in os.environ.items():
        is_secret = _SECRET_NAME.search(name) and len(value) >= MIN_LENGTH
        if is_secret and not value.startswith(("/", "~", ".")) and not value.isspace():
            yield value


def _without_secret(text: str, secret: str) -> str:
    """Mask a secret in every case and encoding, and its first half or more followed by anything else."""
    encoded = base64.b64encode(secret.encode()).decode("ascii").rstrip("=")
    forms = {secret, quote(secret, safe=""), json.dumps(secret)[1:-1], repr(secret)[1:-1], encoded}
    for form in sorted(forms, key=len, reverse=True):
        text = re.sub(re.escape(form), MASK, text, flags=re.IGNORECASE)
    start = secret[: max(MIN_LENGTH, len(secret) // 2)]
    if len(start) < len(secret):
        rest = rf"[{re.escape(''.join(sorted(set(secret[len(start) :]))))}]*"
        text = re.sub(re.escape(start) + rest, MASK, text, flags=re.IGNORECASE)
    return text
