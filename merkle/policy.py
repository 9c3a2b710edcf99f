"""Whom to trust: C2SP tlog-policy files, which name logs, witnesses, groups of them and a quorum.

A checkpoint is good when one of the logs signed it and the quorum of witnesses cosigned it. Witnesses' votes
are counted by key, so a witness counts once, whatever it is called.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from auditor.errors import (
    KeySyntaxError,
    KeyUnknownError,
    OriginUnknownError,
    PolicySyntaxError,
    QuorumMissingError,
)
from auditor.merkle.checkpoints import Checkpoint, Endorsement, verify_checkpoint
from auditor.merkle.keys import Algorithm, PublicKey, parse_vkey
from auditor.merkle.notes import SignedNote

MAX_LINES = 10_000
NONE = "none"
_ALLOWED = re.compile(rb"[\t\n\x20-\x7e\x80-\xff]*")


@dataclass(frozen=True, slots=True)
class Group:
    """At least `threshold` of the members, each a witness or an earlier group."""

    threshold: int
    members: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Approval:
    """What a policy found: the log's signature and the witnesses', all verified."""

    log: Endorsement
    witnesses: Mapping[str, Endorsement]


@dataclass(frozen=True, slots=True)
class Policy:
    """A parsed policy.

    Args:
        logs: keys of accepted logs; a log's name is its origin.
        witnesses: key of each named witness.
        groups: groups by name, members defined before them.
        quorum: a witness, a group, or `none`.
    """

    logs: tuple[PublicKey, ...]
    witnesses: Mapping[str, PublicKey] = field(default_factory=dict)
    groups: Mapping[str, Group] = field(default_factory=dict)
    quorum: str = NONE

    def check(self, note: SignedNote, checkpoint: Checkpoint, where: str = "") -> Approval:
        """Check a checkpoint's signatures and quorum.

        Raises:
            OriginUnknownError: it is of no log of the policy.
            KeyUnknownError: the log's key did not sign it.
            SignatureInvalidError: a known key's line does not verify.
            QuorumMissingError: too few witnesses.
        """
        logs = [key for key in self.logs if key.name == checkpoint.origin]
        if not logs:
            raise OriginUnknownError(f"the policy has no log {checkpoint.origin[:80]!r}", where=where)
        log = verify_checkpoint(note, checkpoint, logs, where)[0]
        cosigned = {}
        for name, key in self.witnesses.items():
            try:
                cosigned[name] = verify_checkpoint(note, checkpoint, [key], where)[0]
            except KeyUnknownError:
                continue
        if not self._met(self.quorum, cosigned):
            have = ", ".join(cosigned) or "nobody"
            raise QuorumMissingError(f"quorum {self.quorum!r} is not met: cosigned by {have}", where=where)
        return Approval(log, cosigned)

    def _met(self, name: str, cosigned: Mapping[str, Endorsement]) -> bool:
        if name == NONE:
            return True
        group = self.groups.get(name)
        if group is None:
            return name in cosigned
        return sum(self._met(member, cosigned) for member in group.members) >= group.threshold


def parse_policy(raw: bytes, where: str = "policy") -> Policy:
    """Read a policy file.

    Raises:
        PolicySyntaxError: a line that is wrong, with its number.
    """
    if not _ALLOWED.fullmatch(raw):
        raise PolicySyntaxError("control characters other than tab and line end", where=where)
    # Octets with the high bit set are opaque: latin-1 keeps each as one character.
    lines = raw.decode("latin-1").split("\n")
    if len(lines) > MAX_LINES:
        raise PolicySyntaxError(f"more than {MAX_LINES} lines", where=where)
    reader = _Reader(where)
    for number, line in enumerate(lines, 1):
        words = re.split(r"[ \t]+", line.strip(" \t"))
        if words[0] and not words[0].startswith("#"):
            reader.read(words, f"{where}:{number}")
    return reader.policy()


class _Reader:
    """Collects one policy line by line."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.logs: list[PublicKey] = []
        self.witnesses: dict[str, PublicKey] = {}
        self.groups: dict[str, Group] = {}
        self.members: set[str] = set()
        self.quorum: str | None = None

    def read(self, words: list[str], where: str) -> None:
        match words:
            case ["log", vkey] | ["log", vkey, _]:
                self.logs.append(self._key(vkey, (Algorithm.ED25519, Algorithm.ML_DSA_44), self.logs, where))
            case ["witness", name, vkey] | ["witness", name, vkey, _]:
                self._fresh(name, where)
                kinds = (Algorithm.ED25519_COSIGNATURE, Algorithm.ML_DSA_44)
                self.witnesses[name] = self._key(vkey, kinds, list(self.witnesses.values()), where)
            case ["group", name, threshold, first, *others]:
                self._fresh(name, where)
                self.groups[name] = self._group(threshold, [first, *others], where)
            case ["quorum", name]:
                if self.quorum is not None:
                    raise PolicySyntaxError("a second quorum line", where=where)
                if name != NONE:
                    self._known(name, where)
                self.quorum = name
            case _:
                fix = "a line begins with log, witness, group or quorum"
                raise PolicySyntaxError(f"cannot read {' '.join(words)[:60]!r}", where=where, fix=fix)

    def _key(self, vkey: str, kinds: tuple[Algorithm, ...], others: list[PublicKey], where: str) -> PublicKey:
        try:
            # Names of keys are UTF-8.
            key = parse_vkey(vkey.encode("latin-1").decode("utf-8"))
        except (KeySyntaxError, UnicodeDecodeError) as error:
            raise PolicySyntaxError(str(error), where=where) from None
        if key.algorithm not in kinds:
            raise PolicySyntaxError(f"a key of type {key.algorithm:#04x} does not fit this line", where=where)
        if any(key.material == other.material for other in others):
            raise PolicySyntaxError("the same public key twice", where=where)
        return key

    def _fresh(self, name: str, where: str) -> None:
        if name == NONE or name in self.witnesses or name in self.groups:
            raise PolicySyntaxError(f"the name {name[:40]!r} is taken", where=where)

    def _known(self, name: str, where: str) -> None:
        if name not in self.witnesses and name not in self.groups:
            raise PolicySyntaxError(f"{name[:40]!r} is not defined on a line above", where=where)

    def _group(self, threshold: str, names: list[str], where: str) -> Group:
        for name in names:
            self._known(name, where)
            if name in self.members:
                raise PolicySyntaxError(f"{name[:40]!r} is in a group already", where=where)
            self.members.add(name)
        words = {"any": 1, "all": len(names)}
        needed = words.get(threshold) or (
            int(threshold) if re.fullmatch(r"[1-9][0-9]{0,4}", threshold) else 0
        )
        if not 1 <= needed <= len(names):
            raise PolicySyntaxError(
                f"{threshold[:20]!r} of {len(names)} members is no threshold", where=where
            )
        return Group(needed, tuple(names))

    def policy(self) -> Policy:
        if self.quorum is None:
            raise PolicySyntaxError(
                "no quorum line", where=self.where, fix="add `quorum none` to need no witness"
            )
        return Policy(tuple(self.logs), self.witnesses, self.groups, self.quorum)
