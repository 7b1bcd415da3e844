"""The certificate and key that sign images (C2PA): the user's own, or self-signed ones of this machine.

LORAKIT_C2PA_CERTIFICATE and LORAKIT_C2PA_KEY name PEM files: the chain of certificates, the signer's first,
and its private key. Without them a key and its certificates are made once and kept beside the user's other
settings. They prove that an image is as it was written, not who wrote it: anybody can make such certificates.
"""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorakit.core import input_files, storage
from lorakit.core.errors import ConfigError

if TYPE_CHECKING:
    from cryptography import x509

CERTIFICATE_VARIABLE, KEY_VARIABLE = "LORAKIT_C2PA_CERTIFICATE", "LORAKIT_C2PA_KEY"
SELF_SIGNED_ISSUER = "lorakit, self-signed"
"""Organization in the self-signed certificates."""
_VALID_DAYS = 3650
_MAX_PEM_BYTES = 1 << 20
_CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}


@dataclass(frozen=True)
class SigningIdentity:
    """A chain of certificates and the private key of the first (PEM), and C2PA's name of the algorithm."""

    certificates: bytes
    key: bytes
    algorithm: str


def identity_file() -> Path:
    """Return the file of the self-signed certificates and their key."""
    folder = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return folder / "lorakit" / "self-signed.pem"


def load_identity() -> SigningIdentity:
    """Return the user's certificate and key, else the self-signed ones, which are made if there are none.

    Raises ConfigError if only one of the two variables is set, or if a file cannot be used.
    """
    certificate, key = os.environ.get(CERTIFICATE_VARIABLE), os.environ.get(KEY_VARIABLE)
    if bool(certificate) != bool(key):
        raise ConfigError(
            "a certificate and its private key belong together, and only one of them is set",
            where=CERTIFICATE_VARIABLE if certificate else KEY_VARIABLE,
            remedy=f"set both {CERTIFICATE_VARIABLE} and {KEY_VARIABLE}, or neither",
        )
    if certificate and key:
        return _identity(_read_pem(certificate), _read_pem(key), certificate, key)
    file = identity_file()
    if not file.is_file():
        with storage.file_lock(file.with_suffix(".lock"), wait_seconds=30):
            if not file.is_file():
                storage.write_bytes(file, _self_signed_pem(), private=True)
    pem = _read_pem(str(file))
    return _identity(pem, pem, str(file), str(file))


def _read_pem(path: str) -> bytes:
    file = Path(path).expanduser()
    if not file.is_file():
        raise ConfigError(
            "there is no such file of a certificate or key", where=path, remedy="check the path"
        )
    return input_files.read_regular(file, _MAX_PEM_BYTES)


def _identity(certificates: bytes, key: bytes, certificate_path: str, key_path: str) -> SigningIdentity:
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    try:
        chain = x509.load_pem_x509_certificates(certificates)
    except ValueError as error:
        raise ConfigError(
            f"not a chain of certificates in PEM: {error}",
            where=certificate_path,
            remedy="give the signer's certificate and those of its issuers, in PEM",
        ) from error
    try:
        private = serialization.load_pem_private_key(key, password=None)
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"not a private key in PEM without a password: {error}",
            where=key_path,
            remedy="give the key as PEM (PKCS 8) without a password",
        ) from error
    if private.public_key() != chain[0].public_key():
        raise ConfigError(
            "the key does not belong to the first certificate",
            where=key_path,
            remedy="give the key of the signer's certificate, and that certificate first",
        )
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return SigningIdentity(
        b"".join(one.public_bytes(encoding) for one in chain),
        private.private_bytes(encoding, form, serialization.NoEncryption()),
        _algorithm(private, key_path),
    )


def _algorithm(key: Any, where: str) -> str:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in _CURVES:
        return _CURVES[key.curve.name]
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size >= 2048:
        return "PS256"
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ED25519"
    raise ConfigError(
        "C2PA has no signature for this kind of key",
        where=where,
        remedy="use a key on the curve P-256, P-384 or P-521, Ed25519, or RSA of 2048 bits or more",
    )


def _self_signed_pem() -> bytes:
    """Return a new key, its certificate and that of the root, which C2PA wants to be another one."""
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    root = _certificate("root", root_key, None).sign(root_key, hashes.SHA256())
    leaf = _certificate("signer", key, root).sign(root_key, hashes.SHA256())
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    private = key.private_bytes(encoding, form, serialization.NoEncryption())
    return private + leaf.public_bytes(encoding) + root.public_bytes(encoding)


def _certificate(name: str, key: Any, issuer: x509.Certificate | None) -> Any:
    """Return a certificate to be signed: a root, or the signer's with an `issuer`."""
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, SELF_SIGNED_ISSUER),
            x509.NameAttribute(NameOID.COMMON_NAME, f"{name} of one installation of lorakit"),
        ]
    )
    begin = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)  # clocks differ
    is_root = issuer is None
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False
    )
    usage |= {"encipher_only": False, "decipher_only": False, "digital_signature": not is_root}
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + datetime.timedelta(days=_VALID_DAYS))
        .add_extension(x509.BasicConstraints(is_root, 0 if is_root else None), critical=True)
        .add_extension(x509.KeyUsage(key_cert_sign=is_root, crl_sign=is_root, **usage), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    if issuer is None:
        return builder
    public: Any = issuer.public_key()
    return builder.add_extension(
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False
    ).add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
