"""Seeds from a committed key: a provider cannot choose them after the fact, nor can whoever asks. Pure.

The seed of request c is the image of c under a keyed permutation of all seeds of one width, so two requests
of a run never share one, and from a logged seed the counter comes back. Whoever holds the key publishes its
commitment before the run and the key after it; then anybody checks every logged seed.

Construction: a balanced Feistel network of ten rounds (as many as FF1, NIST SP 800-38G) whose round function
is HMAC-SHA-256 cut to half the width, under a subkey that depends on width and run. It permutes the smallest
even-width domain that holds the seeds; values that are no seeds are walked over (Black and Rogaway, "Ciphers
with arbitrary finite domains", CT-RSA 2002), which leaves a permutation of exactly the seeds.

Seeds of b bits are 1 to 2**b - 2. Zero and all ones are left out in every width: engines read them as "draw
one yourself" (llama.cpp: 0 and 2**32 - 1; vLLM: -1, which is all ones in 64 bits; zero is "not set" in
several gateways).
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from auditor.errors import AuditError, OptionError
from auditor.strict_json import load_object
from auditor.trace import Trace

SCHEMA = "auditor.seed-key/v1"
SECRET_BYTES = 32
ROUNDS = 10

WIDTHS = (31, 32, 53, 63, 64)
"""Widths of a seed field: a signed and an unsigned 32-bit integer, the whole numbers that a double holds
(gateways written in JavaScript), a signed and an unsigned 64-bit integer."""

ENGINE_BITS: Mapping[str, int] = {
    "vllm-cpu": 32,
    "vllm": 63,
    "sglang": 63,
    "tgi": 63,
    "transformers": 32,
    "llama.cpp": 32,
    "openvino": 32,
    "auditor": 63,
    "int32": 31,
}
"""Engine -> bits of the seed that reach its generator (engines that keep 32 bits would give requests whose
seeds agree in those the same noise). `int32` is a server that refuses more than a signed 32-bit integer."""


@dataclass(frozen=True, slots=True)
class KeyedPermutation:
    """A permutation of the integers 1 to 2**bits - 2, numbered from 0; see the module.

    Attributes:
        key: any bytes.
        bits: 2 to 64.
    """

    key: bytes
    bits: int

    def __post_init__(self) -> None:
        assert 2 <= self.bits <= 64, "the round function is cut from 32 bytes"

    @property
    def size(self) -> int:
        """How many integers are permuted."""
        return (1 << self.bits) - 2

    def forward(self, counter: int) -> int:
        """The integer with this number."""
        assert 0 <= counter < self.size
        value = self._network(counter + 1, range(ROUNDS))
        while not 1 <= value <= self.size:
            value = self._network(value, range(ROUNDS))
        return value

    def backward(self, value: int) -> int:
        """The number of this integer: `backward(forward(c)) == c`."""
        assert 1 <= value <= self.size
        value = self._inverse(value)
        while not 1 <= value <= self.size:
            value = self._inverse(value)
        return value - 1

    @property
    def _half(self) -> int:
        return (self.bits + 1) // 2

    def _network(self, value: int, rounds: range) -> int:
        left, right = value >> self._half, value & ((1 << self._half) - 1)
        for number in rounds:
            left, right = right, left ^ self._round(number, right)
        return left << self._half | right

    def _inverse(self, value: int) -> int:
        # A Feistel network runs backwards with its halves swapped and its rounds reversed.
        half = self._half
        swapped = (value & ((1 << half) - 1)) << half | value >> half
        back = self._network(swapped, range(ROUNDS - 1, -1, -1))
        return (back & ((1 << half) - 1)) << half | back >> half

    def _round(self, number: int, value: int) -> int:
        digest = hmac.digest(self.key, bytes([number]) + value.to_bytes(8, "big"), "sha256")
        return int.from_bytes(digest[:8], "big") & ((1 << self._half) - 1)


@dataclass(frozen=True, slots=True)
class SeedKey:
    """What a run's seeds come from. Whoever holds it can compute them all, so it is revealed last.

    Attributes:
        secret: 32 random bytes.
        bits: width of the engine's seed, one of `WIDTHS`.
        run: a name; runs with different names have unrelated seeds.
    """

    secret: bytes
    bits: int
    run: str = ""

    def __post_init__(self) -> None:
        if len(self.secret) != SECRET_BYTES:
            raise OptionError(f"a seed key has {SECRET_BYTES} bytes, this one {len(self.secret)}")
        if self.bits not in WIDTHS:
            raise OptionError(
                f"seeds of {self.bits} bits", fix=f"choose one of {', '.join(map(str, WIDTHS))}"
            )

    @property
    def commitment(self) -> str:
        """SHA-256 of secret, width and run: binds to all three, and hides the secret, which is random."""
        return (
            "sha256:" + hashlib.sha256(self._context(b"auditor/seed-commitment/v1") + self.secret).hexdigest()
        )

    @property
    def permutation(self) -> KeyedPermutation:
        """The permutation from counters to seeds."""
        return KeyedPermutation(
            hmac.digest(self.secret, self._context(b"auditor/seed/v1"), "sha256"), self.bits
        )

    def seed(self, counter: int) -> int:
        """Seed of request `counter`.

        Raises:
            OptionError: the counter is negative or all seeds of this width are used up.
        """
        permutation = self.permutation
        if not 0 <= counter < permutation.size:
            raise OptionError(f"request {counter} is outside [0, {permutation.size})")
        return permutation.forward(counter)

    def counter(self, seed: int) -> int | None:
        """Request number of a seed; None when no request of this width can have it."""
        permutation = self.permutation
        return permutation.backward(seed) if 1 <= seed <= permutation.size else None

    def _context(self, domain: bytes) -> bytes:
        run = self.run.encode("utf-8")
        return b"".join((domain, bytes([0, self.bits]), len(run).to_bytes(8, "big"), run))


def key_to_json(key: SeedKey) -> str:
    """The key file, which is also what is published to reveal the key."""
    value = {"schema": SCHEMA, "run": key.run, "bits": key.bits, "secret": key.secret.hex()}
    return json.dumps({**value, "commitment": key.commitment}, indent=2) + "\n"


def key_from_json(raw: bytes, *, where: str) -> SeedKey:
    """Read a key file.

    Raises:
        TraceSyntaxError: no JSON object.
        OptionError: not a key, or its commitment is not that of its secret.
    """
    value = load_object(raw, where=where, max_bytes=1 << 16)
    secret, bits, run = value.get("secret"), value.get("bits"), value.get("run", "")
    if value.get("schema") != SCHEMA or not isinstance(secret, str) or not isinstance(run, str):
        raise OptionError("is no seed key", where=where, fix="make one with `audit seed new`")
    try:
        key = SeedKey(bytes.fromhex(secret), bits if type(bits) is int else 0, run)
    except (ValueError, OptionError) as error:
        raise OptionError(f"is no usable seed key: {error}", where=where) from None
    if value.get("commitment", key.commitment) != key.commitment:
        raise OptionError("the commitment in the file is not that of its secret, bits and run", where=where)
    return key


SeedProblem = Literal["none logged", "not of this key", "used before"]


@dataclass(frozen=True, slots=True)
class SeedFinding:
    """What one logged request's seed says about the key.

    Attributes:
        item: the trace, or the error that stands for a line that cannot be read.
        counter: number of the request in the run, None when the seed is not of the key.
        problem: None when all is well.
    """

    item: Trace | AuditError
    counter: int | None
    problem: SeedProblem | None


def check_seeds(key: SeedKey, items: Iterable[Trace | AuditError], *, requests: int) -> Iterator[SeedFinding]:
    """Check that each logged seed is one of the first `requests` of the key, and none comes twice.

    A seed drawn elsewhere passes with probability `requests / 2**bits`. Greedy requests need no seed.
    """
    seen: set[int] = set()
    for item in items:
        if isinstance(item, AuditError):
            yield SeedFinding(item, None, None)
        elif item.seed is None:
            yield SeedFinding(item, None, None if item.sampling.greedy else "none logged")
        else:
            counter = key.counter(item.seed)
            if counter is None or counter >= requests:
                yield SeedFinding(item, None, "not of this key")
            else:
                yield SeedFinding(item, counter, "used before" if counter in seen else None)
                seen.add(counter)
