"""Signed manifests (C2PA): validated by c2pa-python's own reader; changed images fail."""

from __future__ import annotations

import io
import json
import os
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lorakit.cli import main
from lorakit.cli.json_answers import JSON_ANSWERS
from lorakit.core import storage
from lorakit.core.errors import ConfigError, DataError
from lorakit.imaging import content_credentials, inspect_image, provenance, signing_identity
from tests.imaging.test_provenance import RECORD, noise

needs_c2pa = pytest.mark.skipif(
    not __import__("importlib").util.find_spec("c2pa"), reason="needs the extra c2pa (in the dev group)"
)


@pytest.fixture(autouse=True)
def own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without certificates."""
    for name in ("CERTIFICATE_VARIABLE", "KEY_VARIABLE"):
        monkeypatch.delenv(getattr(signing_identity, name), raising=False)
    monkeypatch.delenv(content_credentials.TRUST_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config"


def encoded(kind: str) -> bytes:
    file = io.BytesIO()
    if kind == "png":
        noise().save(file, "PNG", pnginfo=provenance.png_info(RECORD))
    else:
        noise().save(file, "WEBP", lossless=True, **provenance.webp_options(RECORD))
    return file.getvalue()


def signed(kind: str) -> bytes:
    identity = signing_identity.load_identity()
    return content_credentials.sign_image(encoded(kind), f"image/{kind}", RECORD, identity)


def changed_at(data: bytes, place: int, kind: str) -> bytes:
    """Return an image file with one other bit; a PNG with the checksum that a forger would write, too."""
    changed = bytearray(data)
    changed[place] ^= 1
    offset = 8
    while kind == "png" and offset < len(data):
        length = int.from_bytes(data[offset : offset + 4], "big")
        chunk = changed[offset + 4 : offset + 8 + length]
        changed[offset + 8 + length : offset + 12 + length] = zlib.crc32(chunk).to_bytes(4, "big")
        offset += 12 + length
    return bytes(changed)


@needs_c2pa
@pytest.mark.parametrize("kind", ["png", "webp"])
def test_the_library_itself_validates_a_signed_image(kind):
    import c2pa

    data = signed(kind)
    with c2pa.Reader(f"image/{kind}", io.BytesIO(data)) as reader:
        assert reader.get_validation_state() == "Valid"
        manifest = reader.get_active_manifest()
        codes = {row["code"] for row in reader.get_validation_results()["activeManifest"]["success"]}
    assert {"claimSignature.validated", "assertion.dataHash.match"} <= codes
    assertions = {one["label"]: one["data"] for one in manifest["assertions"]}
    (action,) = assertions["c2pa.actions.v2"]["actions"]
    assert action["action"] == "c2pa.created"
    assert action["digitalSourceType"].endswith("/trainedAlgorithmicMedia")
    assert assertions[content_credentials.RECORD_LABEL]["seed"] == RECORD.seed
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), np.asarray(noise()))


@needs_c2pa
@pytest.mark.parametrize("kind", ["png", "webp"])
def test_a_changed_image_fails(kind, tmp_path):
    """A pixel, the prompt in the text or a byte of the manifest."""
    data = signed(kind)
    places = {
        "pixels": data.index(b"IDAT") + 20 if kind == "png" else data.index(b"VP8L") + 40,
        "text": data.index(b"Steps: 20" if kind == "png" else "Steps: 20".encode("utf-16-be")),
        "manifest": data.index(b"trainedAlgorithmicMedia", data.index(b"jumb")),
    }
    for name, place in places.items():
        file = storage.write_bytes(tmp_path / f"{name}.{kind}", changed_at(data, place, kind))
        properties = inspect_image.inspect_image(file)
        assert properties["content_credentials"]["state"] == "invalid", name
        with pytest.raises(DataError, match="changed after it was signed"):
            inspect_image.require_unchanged(properties)


@needs_c2pa
def test_inspect_shows_record_and_signature_and_fails_for_a_changed_image(tmp_path, capsys):
    data = signed("png")
    file = storage.write_bytes(tmp_path / "a.png", data)
    assert main.main(["inspect", str(file)]) == 0
    text = capsys.readouterr().out
    assert main.main(["inspect", str(file), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer.keys() == {key for names in JSON_ANSWERS["inspect IMAGE"] for key in names.split(", ")}
    for part in ("a photo of sks dog", "valid", "trainedAlgorithmicMedia", "not who made it", "ab" * 32):
        assert part in text
    storage.write_bytes(file, changed_at(data, data.index(b"Steps: 20"), "png"))
    assert main.main(["inspect", str(file)]) == DataError.exit_code
    assert "changed after it was signed" in capsys.readouterr().err


@needs_c2pa
def test_a_self_signed_certificate_says_that_it_proves_no_identity(own_settings):
    credentials = content_credentials.read_credentials(signed("png"), "image/png")
    assert credentials is not None
    assert credentials.state == "valid"
    assert credentials.issuer == signing_identity.SELF_SIGNED_ISSUER
    assert "not who made it" in credentials.identity
    file = signing_identity.identity_file()
    assert file.is_relative_to(own_settings)
    before = file.read_bytes()
    signing_identity.load_identity()
    assert file.read_bytes() == before  # made once
    if os.name == "posix":
        assert file.stat().st_mode & 0o077 == 0


@needs_c2pa
def test_a_certificate_of_the_user_signs_and_a_trusted_authority_confirms_it(tmp_path, monkeypatch):
    key, leaf, root = _own_certificate()
    monkeypatch.setenv(
        signing_identity.CERTIFICATE_VARIABLE, str(storage.write_bytes(tmp_path / "c.pem", leaf + root))
    )
    monkeypatch.setenv(signing_identity.KEY_VARIABLE, str(storage.write_bytes(tmp_path / "k.pem", key)))
    data = signed("png")
    credentials = content_credentials.read_credentials(data, "image/png")
    assert credentials is not None
    assert (credentials.state, credentials.issuer) == ("valid", "A photographer")
    assert "no authority that is trusted here confirms" in credentials.identity
    monkeypatch.setenv(content_credentials.TRUST_VARIABLE, str(storage.write_bytes(tmp_path / "t.pem", root)))
    credentials = content_credentials.read_credentials(data, "image/png")
    assert credentials is not None
    assert credentials.state == "trusted"
    assert not signing_identity.identity_file().exists()


def _own_certificate() -> tuple[bytes, bytes, bytes]:
    """A key and certificates like the self-signed ones, of another organization."""
    from unittest import mock

    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    with mock.patch.object(signing_identity, "SELF_SIGNED_ISSUER", "A photographer"):
        pem = signing_identity._self_signed_pem()
    leaf, root = x509.load_pem_x509_certificates(pem)
    encoding = serialization.Encoding.PEM
    return (
        pem.partition(b"-----BEGIN CERTIFICATE")[0],
        leaf.public_bytes(encoding),
        root.public_bytes(encoding),
    )


@needs_c2pa
@pytest.mark.parametrize(
    ("files", "message"),
    [
        (("missing", None), "only one of them is set"),
        (("missing", "key"), "no such file"),
        (("text", "key"), "not a chain of certificates"),
        (("chain", "text"), "not a private key"),
        (("chain", "other"), "does not belong to the first certificate"),
    ],
)
def test_a_certificate_that_cannot_sign_is_refused_with_the_reason(files, message, tmp_path, monkeypatch):
    key, leaf, root = _own_certificate()
    contents = {"key": key, "chain": leaf + root, "text": b"hello", "other": _own_certificate()[0]}
    for name, data in contents.items():
        storage.write_bytes(tmp_path / name, data)
    for variable, name in zip(("CERTIFICATE_VARIABLE", "KEY_VARIABLE"), files, strict=True):
        if name:
            monkeypatch.setenv(getattr(signing_identity, variable), str(tmp_path / name))
    with pytest.raises(ConfigError, match=message):
        signing_identity.load_identity()


def test_without_the_extra_signing_is_refused_and_inspect_says_what_is_missing(tmp_path, monkeypatch):
    manifest = b"\0\0\0\x04caBXjumb"  # looks like one
    file = storage.write_bytes(tmp_path / "a.png", encoded("png") + manifest)
    monkeypatch.setitem(sys.modules, "c2pa", None)
    with pytest.raises(ConfigError, match="c2pa-python, which is not installed") as caught:
        content_credentials.import_c2pa()
    assert "lorakit[c2pa]" in str(caught.value)
    credentials = inspect_image.inspect_image(file)["content_credentials"]
    assert credentials["state"] == "not checked"
    assert "lorakit[c2pa]" in credentials["problems"][0]
    prompts = storage.write_text(tmp_path / "p.txt", "a circle\n")
    arguments = ["sample", "tiny-dit", "--prompts", str(prompts), "--provenance", "c2pa"]
    assert main.main([*arguments, "--out", str(tmp_path / "out")]) == ConfigError.exit_code
    assert not (tmp_path / "out").exists()
