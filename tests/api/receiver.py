"""A receiver of webhooks on this machine: real TLS, under an authority made for the test."""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

NAMES = ("localhost", "hook.test")


def make_certificate(folder, names=NAMES, addresses=("127.0.0.1",)):
    """A self-signed certificate and its key in one PEM file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "receiver")])
    other = [x509.DNSName(n) for n in names] + [x509.IPAddress(ipaddress.ip_address(a)) for a in addresses]
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(other), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file = folder / "receiver.pem"
    file.write_bytes(pem + made.public_bytes(serialization.Encoding.PEM))
    return file


class Receiver(ThreadingHTTPServer):
    """Keeps what came; `plan` holds the answers to come: a status, or `slow`, `endless`, `drop`."""

    daemon_threads = True

    def __init__(self, address, certificate):
        self.came, self.plan, self.sent = [], [], 0
        super().__init__((address, 0), _Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        # Shaken hands with in the handler's thread, so that one bad client does not stop the others.
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    @property
    def port(self):
        return self.server_address[1]

    def handle_error(self, *_):
        pass


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.came.append((self.path, dict(self.headers.items()), body))
        answer = self.server.plan.pop(0) if self.server.plan else 200
        if answer == "drop":
            return
        if answer == "slow":
            time.sleep(3)
            return
        self.send_response(200 if answer == "endless" else answer)
        if answer in (301, 307):
            self.send_header("Location", f"https://127.0.0.1:{self.server.port}/elsewhere")
        self.end_headers()
        if answer == "endless":
            while True:
                self.wfile.write(b"x" * 4096)
                self.server.sent += 4096

    def log_message(self, *_):
        pass


@contextmanager
def receiving(address, certificate):
    receiver = Receiver(address, certificate)
    thread = threading.Thread(target=receiver.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        receiver.shutdown()
        receiver.server_close()
        thread.join()
