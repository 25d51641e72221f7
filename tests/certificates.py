"""Certificates for tests of TLS, made by the ``openssl`` program: an authority, a server, a client."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

__all__ = ["Certificates", "make_certificates"]

_CONFIGURATION = """
[req]
distinguished_name = name
prompt = no
[name]
CN = {name}
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[leaf]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth, clientAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = {alternatives}
"""


@dataclass(frozen=True)
class Certificates:
    """Paths of PEM files.

    Attributes:
        ca: Authority that signed the others.
        server_cert: For ``localhost``, ``127.0.0.1`` and ``::1``.
        server_key: Its private key.
        client_cert: Of a client.
        client_key: Its private key.
        elsewhere_cert: For ``elsewhere.example`` only.
        elsewhere_key: Its private key.
        encrypted_key: The server's private key, encrypted.
        other_ca: Another authority, which signed none of these.
    """

    ca: str
    server_cert: str
    server_key: str
    client_cert: str
    client_key: str
    elsewhere_cert: str
    elsewhere_key: str
    encrypted_key: str
    other_ca: str


def make_certificates(folder: Path) -> Certificates:
    """Write certificates that are valid for a day, and return their paths."""
    if shutil.which("openssl") is None:
        pytest.skip("the openssl program is not installed")

    def openssl(*words: object) -> None:
        subprocess.run(["openssl", *map(str, words)], cwd=folder, check=True, capture_output=True)

    def make(name: str, section: str, alternatives: str, *signer: str) -> None:
        configuration = folder / f"{name}.cnf"
        configuration.write_text(_CONFIGURATION.format(name=name, alternatives=alternatives))
        openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", f"{name}.key")
        request = ("-key", f"{name}.key", "-config", configuration, "-new")
        if not signer:
            openssl("req", "-x509", *request, "-days", 1, "-extensions", section, "-out", f"{name}.pem")
            return
        openssl("req", *request, "-out", f"{name}.csr")
        extensions = ("-extfile", configuration, "-extensions", section)
        openssl("x509", "-req", "-in", f"{name}.csr", "-days", 1, *extensions, *signer, "-out", f"{name}.pem")

    signer = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial")
    make("ca", "authority", "DNS:unused")
    make("other_ca", "authority", "DNS:unused")
    make("server", "leaf", "DNS:localhost, IP:127.0.0.1, IP:::1", *signer)
    make("client", "leaf", "DNS:robot", *signer)
    make("elsewhere", "leaf", "DNS:elsewhere.example", *signer)
    openssl("ec", "-in", "server.key", "-aes256", "-passout", "pass:secret", "-out", "encrypted.key")
    paths = {
        field: str(folder / file)
        for field, file in {
            "ca": "ca.pem",
            "server_cert": "server.pem",
            "server_key": "server.key",
            "client_cert": "client.pem",
            "client_key": "client.key",
            "elsewhere_cert": "elsewhere.pem",
            "elsewhere_key": "elsewhere.key",
            "encrypted_key": "encrypted.key",
            "other_ca": "other_ca.pem",
        }.items()
    }
    return Certificates(**paths)
