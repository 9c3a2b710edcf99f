"""A time-stamping authority in the test's process: its own root, any clock, and every way to get it wrong."""

from __future__ import annotations

import hashlib
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer

from asn1crypto import algos, cms, tsp
from asn1crypto import x509 as asn1_x509
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

START = datetime(2026, 1, 1, tzinfo=UTC)
YEARS = timedelta(days=3650)


def named(name):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def certificate(subject, key, issuer, issuer_key, *, usages=None, until=START + YEARS):
    builder = (
        x509.CertificateBuilder()
        .subject_name(named(subject))
        .issuer_name(named(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(START)
        .not_valid_after(until)
        .add_extension(x509.BasicConstraints(ca=usages is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
        )
    )
    if usages is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=True)
    return builder.sign(issuer_key, hashes.SHA256())


@dataclass
class Authority:
    """Answers queries; `until` is when its certificate ends, `usages` what that is for."""

    usages: tuple = (ExtendedKeyUsageOID.TIME_STAMPING,)
    until: datetime = START + YEARS
    root_key: object = field(default_factory=lambda: rsa.generate_private_key(65537, 2048))
    key: object = field(default_factory=lambda: rsa.generate_private_key(65537, 2048))

    def __post_init__(self):
        self.root = certificate("Root", self.root_key, "Root", self.root_key)
        self.own = certificate(
            "Authority", self.key, "Root", self.root_key, usages=list(self.usages), until=self.until
        )

    def answer(self, query, *, at=None, nonce=None, imprint=None, status="granted"):
        asked = tsp.TimeStampReq.load(query)
        if status != "granted":
            said = tsp.PKIStatusInfo({"status": status, "status_string": ["not today"]}).dump()
            return b"\x30" + bytes([len(said)]) + said
        info = tsp.TSTInfo(
            {
                "version": "v1",
                "policy": "1.2.3.4.1",
                "message_imprint": imprint or asked["message_imprint"],
                "serial_number": 7,
                "gen_time": at or datetime.now(UTC).replace(microsecond=0),
                "nonce": asked["nonce"].native if nonce is None else nonce,
            }
        )
        token = self._signed(info)
        return tsp.TimeStampResp({"status": {"status": status}, "time_stamp_token": token}).dump()

    def _signed(self, info):
        own = asn1_x509.Certificate.load(self.own.public_bytes(serialization.Encoding.DER))
        sha256 = algos.DigestAlgorithm({"algorithm": "sha256"})
        essential = tsp.SigningCertificateV2({"certs": [{"cert_hash": hashlib.sha256(own.dump()).digest()}]})
        attributes = cms.CMSAttributes(
            [
                cms.CMSAttribute({"type": "content_type", "values": ["tst_info"]}),
                cms.CMSAttribute(
                    {"type": "message_digest", "values": [hashlib.sha256(info.dump()).digest()]}
                ),
                cms.CMSAttribute({"type": "signing_certificate_v2", "values": [essential]}),
            ]
        )
        signature = self.key.sign(attributes.dump(), padding.PKCS1v15(), hashes.SHA256())
        signer = {
            "version": "v1",
            "sid": cms.IssuerAndSerialNumber({"issuer": own.issuer, "serial_number": own.serial_number}),
            "digest_algorithm": sha256,
            "signed_attrs": attributes,
            "signature_algorithm": {"algorithm": "sha256_rsa"},
            "signature": signature,
        }
        content = {
            "version": "v3",
            "digest_algorithms": [sha256],
            "encap_content_info": {"content_type": "tst_info", "content": info},
            "certificates": [own],
            "signer_infos": [signer],
        }
        return cms.ContentInfo({"content_type": "signed_data", "content": cms.SignedData(content)})


@contextmanager
def serving(answer):
    """An authority at an address; `answer` makes the reply of a query: (HTTP status, bytes)."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            assert self.headers["Content-Type"] == "application/timestamp-query"
            status, body = answer(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(status)
            self.send_header("Content-Type", "application/timestamp-reply")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
