"""Content credentials (C2PA): a signed manifest inside an image that says it is AI-generated.

https://spec.c2pa.org. Signing and reading are those of c2pa-python, the extra `c2pa`. The signature covers
all bytes of the image: one that was changed afterwards does not validate. It names the certificate, and only
a certificate of a known authority says who signed.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorakit.core import input_files
from lorakit.core.errors import ConfigError, DataError, first_line
from lorakit.core.version import __version__
from lorakit.imaging.provenance import DIGITAL_SOURCE_TYPE, ImageProvenance
from lorakit.imaging.signing_identity import SELF_SIGNED_ISSUER, SigningIdentity

TRUST_VARIABLE = "LORAKIT_C2PA_TRUST"
RECORD_LABEL = "org.lorakit.provenance"
"""Label of the assertion with the image's record."""
MIME_TYPES = {".png": "image/png", ".webp": "image/webp", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}
MIME_TYPES |= {".avif": "image/avif", ".tif": "image/tiff", ".tiff": "image/tiff", ".gif": "image/gif"}
MARKS = (b"caBX", b"c2pa")
"""Bytes of a manifest in a PNG, and in all other formats."""
_OFFLINE = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}
_NO_THUMBNAIL = {"builder": {"thumbnail": {"enabled": False}}}
_UNTRUSTED = "signingCredential.untrusted"
_MAX_TRUST_BYTES = 16 << 20


@dataclass(frozen=True)
class ContentCredentials:
    """The manifest of an image and its validation."""

    state: str
    """`trusted`: unchanged, and signed by a known authority's certificate; `valid`: unchanged, by a
    certificate of which nobody says whose it is; `invalid`: changed or damaged."""
    digital_source_type: str | None
    generator: str
    issuer: str
    """The organization that the certificate names."""
    problems: tuple[str, ...]
    record: Mapping[str, Any]
    """The record of the image, if lorakit signed it."""

    @property
    def identity(self) -> str:
        """A sentence about what the signature says of the signer."""
        if self.state == "trusted":
            return f"the certificate of {self.issuer} was issued by an authority that is trusted here"
        if self.state != "valid":
            return "unknown: the signature does not validate"
        if self.issuer == SELF_SIGNED_ISSUER:
            return "a self-signed certificate: it proves that the image is unchanged, not who made it"
        return f"it says {self.issuer}, which no authority that is trusted here confirms"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "state": self.state,
            "digital_source_type": self.digital_source_type,
            "generator": self.generator,
            "issuer": self.issuer,
            "identity": self.identity,
            "problems": list(self.problems),
        }


def import_c2pa() -> Any:
    """Import c2pa-python; ConfigError that names the extra if it is not installed."""
    try:
        import c2pa
    except ImportError as error:
        raise ConfigError(
            "content credentials (C2PA) need c2pa-python, which is not installed",
            where="provenance",
            remedy="pip install 'lorakit[c2pa]'",
        ) from error
    return c2pa


def sign_image(data: bytes, mime_type: str, record: ImageProvenance, identity: SigningIdentity) -> bytes:
    """Return an image file with a signed manifest; its pixels and texts stay the same.

    Raises ConfigError if the certificate cannot sign.
    """
    c2pa = import_c2pa()
    agent = {"name": "lorakit", "version": __version__}
    action = {"action": "c2pa.created", "digitalSourceType": DIGITAL_SOURCE_TYPE, "softwareAgent": agent}
    manifest = {
        "claim_generator_info": [agent],
        "format": mime_type,
        "assertions": [
            {"label": "c2pa.actions.v2", "data": {"actions": [action]}},
            {"label": RECORD_LABEL, "data": record.to_json()},
        ],
    }
    signed = io.BytesIO()
    try:
        algorithm = c2pa.C2paSigningAlg[identity.algorithm]
        info = c2pa.C2paSignerInfo(algorithm, identity.certificates, identity.key, None)
        context = c2pa.Context.from_dict(_OFFLINE | _NO_THUMBNAIL)
        with c2pa.Signer.from_info(info) as signer, c2pa.Builder(manifest, context=context) as builder:
            builder.sign(signer, mime_type, io.BytesIO(data), signed)
    except c2pa.C2paError as error:
        raise ConfigError(
            f"the image could not be signed: {first_line(error)}",
            where="the signing certificate",
            remedy="use a certificate for C2PA that is valid today, with its whole chain",
        ) from error
    return signed.getvalue()


def has_manifest(data: bytes) -> bool:
    """Return True if an image file seems to contain a manifest; needs no library."""
    return any(mark in data for mark in MARKS) and b"jumb" in data


def read_credentials(data: bytes, mime_type: str) -> ContentCredentials | None:
    """Validate the manifest of an image file; None if it has none.

    Raises DataError if it cannot be read at all.
    """
    c2pa = import_c2pa()
    try:
        context = c2pa.Context.from_dict(_OFFLINE | _trust_settings())
        reader = c2pa.Reader.try_create(mime_type, io.BytesIO(data), context=context)
        if reader is None:
            return None
        with reader:
            state, results = reader.get_validation_state(), reader.get_validation_results() or {}
            manifest = reader.get_active_manifest() or {}
    except (c2pa.C2paError, KeyError) as error:
        raise DataError(f"its content credentials are damaged: {first_line(error)}") from error
    failures = [row for row in _failures(results) if row["code"] != _UNTRUSTED]
    assertions = {one["label"]: one["data"] for one in manifest.get("assertions", ())}
    generators = manifest.get("claim_generator_info") or [{}]
    return ContentCredentials(
        state=str(state).lower() if not failures else "invalid",
        digital_source_type=_source_type(assertions),
        generator=" ".join(str(generators[0].get(name, "")) for name in ("name", "version")).strip(),
        issuer=str((manifest.get("signature_info") or {}).get("issuer", "nobody")),
        problems=tuple(dict.fromkeys(str(row.get("explanation") or row["code"]) for row in failures)),
        record=assertions.get(RECORD_LABEL, {}),
    )


def _trust_settings() -> dict[str, Any]:
    """Return the setting for the certificates of authorities that the user trusts."""
    if not (path := os.environ.get(TRUST_VARIABLE)):
        return {}
    if not Path(path).is_file():
        raise ConfigError("there is no such file of certificates", where=f"{TRUST_VARIABLE}={path}")
    anchors = input_files.read_regular(Path(path), _MAX_TRUST_BYTES).decode("utf-8", "replace")
    return {"trust": {"user_anchors": anchors}}


def _failures(results: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the failures of the manifest, and of those of its ingredients."""
    parts = [results.get("activeManifest") or {}]
    parts += [one.get("validationDeltas") or {} for one in results.get("ingredientDeltas") or ()]
    return [row for part in parts for row in part.get("failure") or ()]


def _source_type(assertions: Mapping[str, Any]) -> str | None:
    for label, data in assertions.items():
        if label.startswith("c2pa.actions"):
            for action in data.get("actions", ()):
                if isinstance(source_type := action.get("digitalSourceType"), str):
                    return source_type
    return None
