"""Check a receipt with nothing but Python: `python standalone_verifier.py RECEIPT ENTRY POLICY`.

A second implementation on purpose. It imports nothing of this project and nothing that has to be installed,
and can be copied away and read in one sitting, so that a receipt need not be believed because our own package
says so. It follows the numbered steps of `merkle/receipts.py` and exits with 0 when they all hold, 1 when one
does not, 2 when a file cannot be read.

1. the checkpoint inside is of a log of the policy, and that log's key signed it;
2. the quorum of witnesses cosigned it;
3. the leaf hash of the entry at the index, with the path, leads to the checkpoint's root at its size.

Only Ed25519 is built in (RFC 8032, verification needs no secrets and so no constant time). A log or witness
with an ML-DSA-44 key counts as not having signed: that can refuse a good receipt, never pass a bad one.
"""

from __future__ import annotations

import base64
import re
import sys
from hashlib import sha256, sha512
from pathlib import Path

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
ROOT_OF_MINUS_ONE = pow(2, (P - 1) // 4, P)
Point = tuple[int, int, int, int]  # extended homogeneous coordinates, RFC 8032 section 5.1.4


class RefusedError(Exception):
    """The receipt does not hold, or cannot be read."""


def add(a: Point, b: Point) -> Point:
    """Sum of two points of edwards25519."""
    e = (a[1] - a[0]) * (b[1] - b[0]) % P
    f = (a[1] + a[0]) * (b[1] + b[0]) % P
    g = 2 * a[3] * b[3] * D % P
    h = 2 * a[2] * b[2] % P
    low, high, left, right = f - e, h - g, h + g, f + e
    return low * high % P, left * right % P, high * left % P, low * right % P


def multiply(scalar: int, point: Point) -> Point:
    """A multiple of a point."""
    result: Point = (0, 1, 1, 0)
    while scalar:
        if scalar & 1:
            result = add(result, point)
        point = add(point, point)
        scalar >>= 1
    return result


def decompress(data: bytes) -> Point | None:
    """A point from its 32 bytes; None when they are no canonical point."""
    y = int.from_bytes(data, "little")
    sign, y = y >> 255, y & (1 << 255) - 1
    if y >= P:
        return None
    square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * ROOT_OF_MINUS_ONE % P
    if (x * x - square) % P or (x == 0 and sign):
        return None
    if x & 1 != sign:
        x = P - x
    return x, y, 1, x * y % P


BASE = decompress((4 * pow(5, P - 2, P) % P).to_bytes(32, "little"))


def ed25519_verifies(public: bytes, message: bytes, signature: bytes) -> bool:
    """RFC 8032 section 5.1.7, with S below the group order."""
    if len(public) != 32 or len(signature) != 64 or BASE is None:
        return False
    a, r, s = decompress(public), decompress(signature[:32]), int.from_bytes(signature[32:], "little")
    if a is None or r is None or s >= L:
        return False
    k = int.from_bytes(sha512(signature[:32] + public + message).digest(), "little") % L
    left, right = multiply(s, BASE), add(r, multiply(k, a))
    return not (
        (left[0] * right[2] - right[0] * left[2]) % P or (left[1] * right[2] - right[1] * left[2]) % P
    )


def unbase64(text: str) -> bytes:
    """Strict base64."""
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        raise RefusedError(f"{text[:40]!r} is no base64") from None
    if base64.b64encode(data).decode() != text:
        raise RefusedError(f"{text[:40]!r} is no canonical base64")
    return data


def number(text: str) -> int:
    """A decimal without leading zeros."""
    if not re.fullmatch(r"0|[1-9][0-9]{0,18}", text):
        raise RefusedError(f"{text[:30]!r} is no number")
    return int(text)


def signs(key: tuple[str, int, bytes], text: str, lines: list[str]) -> bool:
    """Whether a key's lines are there and hold; one that does not hold condemns the whole."""
    name, kind, public = key
    key_id = sha256(name.encode() + b"\n" + bytes([kind]) + public).digest()[:4]
    found = False
    for line in lines:
        words = line.split(" ")
        if len(words) != 3 or words[0] != "\u2014":
            raise RefusedError(f"{line[:40]!r} is no signature line")
        body = unbase64(words[2])
        if words[1] != name or body[:4] != key_id or kind not in {1, 4}:
            continue
        signature, message = body[4:], text
        if kind == 4:
            stamp, signature = int.from_bytes(signature[:8], "big"), signature[8:]
            message = f"cosignature/v1\ntime {stamp}\n{text}"
        if not ed25519_verifies(public, message.encode(), signature):
            raise RefusedError(f"the signature of {name} is invalid")
        found = True
    return found


def parse_key(vkey: str) -> tuple[str, int, bytes]:
    """Name, type byte and public key."""
    name, _, rest = vkey.partition("+")
    key_id, _, body = rest.partition("+")
    data = unbase64(body)
    if not data or sha256(name.encode() + b"\n" + data).hexdigest()[:8] != key_id:
        raise RefusedError(f"the key of {name!r} does not fit its id")
    return name, data[0], data[1:]


def trusted(policy: str, origin: str, text: str, lines: list[str]) -> str:
    """Steps 1 and 2; returns the names of the witnesses that cosigned."""
    logs, votes, quorum = [], {"none": True}, ""
    seen: set[bytes] = set()
    for row in policy.split("\n"):
        match row.split():
            case ["log", vkey, *_]:
                logs.append(parse_key(vkey))
            case ["witness", name, vkey, *_] if name not in votes:
                key = parse_key(vkey)
                votes[name] = key[2] not in seen and signs(key, text, lines)
                seen.add(key[2])
            case ["group", name, threshold, *members] if members and name not in votes:
                count = sum(votes[member] for member in set(members) - {"none"})
                need = {"any": 1, "all": len(members)}.get(threshold) or number(threshold)
                votes[name] = need >= 1 and count >= need
            case ["quorum", name] if not quorum:
                quorum = name
            case [] | ["#", *_]:
                continue
            case [first, *_] if first.startswith("#"):
                continue
            case _:
                raise RefusedError(f"cannot read the policy's line {row[:60]!r}")
    keys = [key for key in logs if key[0] == origin]
    if not any([signs(key, text, lines) for key in keys]):  # noqa: C419  # every line is checked
        raise RefusedError(f"step 1: no trusted log key signed {origin!r}")
    if not votes.get(quorum, False):
        raise RefusedError(f"step 2: the quorum {quorum!r} is not met")
    return ", ".join(name for name, vote in votes.items() if vote and name != "none") or "no witness"


def root_above(node: bytes, index: int, size: int, path: list[bytes]) -> bytes:
    """Step 3: RFC 9162 section 2.1.3.2."""
    if index >= size:
        raise RefusedError(f"step 3: index {index} in a tree of {size}")
    last = size - 1
    for sibling in path:
        if last == 0:
            raise RefusedError("step 3: the path is too long")
        while index % 2 == 0 and index == last:
            index, last = index // 2, last // 2
        node = sha256(b"\x01" + (sibling + node if index % 2 else node + sibling)).digest()
        index, last = index // 2, last // 2
    if last:
        raise RefusedError("step 3: the path is too short")
    return node


def check(receipt: bytes, entry: bytes, policy: str) -> str:
    """All three steps; returns one line of what was found.

    Raises:
        RefusedError: which step failed, or what cannot be read.
    """
    try:
        head, _, note = receipt.decode("utf-8").partition("\n\n")
        text, _, signatures = note.rpartition("\n\n")
        origin, size, root, *_ = (text + "\n").split("\n")
        header, *rows = head.split("\n")
    except ValueError:
        raise RefusedError("no receipt") from None
    rows = rows[1:] if rows and rows[0].startswith("extra ") else rows
    if header != "c2sp.org/tlog-proof@v1" or not rows or not rows[0].startswith("index ") or len(rows) > 64:
        raise RefusedError("no receipt")
    path = [unbase64(row) for row in rows[1:]]
    if any(len(value) != 32 for value in path):
        raise RefusedError("a hash of the path is not 32 bytes long")
    if not signatures.endswith("\n"):
        raise RefusedError("the last signature line is cut off")
    found = trusted(policy, origin, text + "\n", signatures[:-1].split("\n"))
    index = number(rows[0].removeprefix("index "))
    leaf = sha256(b"\x00" + entry).digest()
    if root_above(leaf, index, number(size), path) != unbase64(root):
        raise RefusedError("step 3: the path leads to another root")
    return f"{origin}: entry {index} of {size}, cosigned by {found}"


def main(arguments: list[str]) -> int:
    """The command line."""
    if len(arguments) != 3:
        sys.stderr.write("usage: python standalone_verifier.py RECEIPT ENTRY POLICY\n")
        return 2
    try:
        receipt, entry, policy = (Path(name).read_bytes() for name in arguments)
    except OSError as error:
        sys.stderr.write(f"cannot be read: {error}\n")
        return 2
    try:
        sys.stdout.write(check(receipt, entry, policy.decode("utf-8", "replace")) + "\n")
    except (RefusedError, KeyError) as error:
        sys.stderr.write(f"refused: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
