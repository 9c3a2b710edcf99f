"""Who vouches for a profile: its signatures, and the list of those that were taken back. Pure.

A profile decides who is accused, so whoever can slip in another one decides the verdict. The signature is a
signed note (C2SP signed-note, Ed25519) kept in the profile; its text names the id, which is the digest of all
figures, and the times, which are what tells an old profile from its successor:

    auditor-profile/v1
    id sha256:...
    created 2026-11-23T12:00:00Z
    expires 2027-05-22T12:00:00Z

`Trust.check` in order:

1. the profile carries a note (`profile-unsigned`);
2. the note's text is what this profile's own content says (`signature-invalid`);
3. a trusted key signed it, and no line of a trusted key is wrong (`key-unknown`, `signature-invalid`);
4. it has not expired (`profile-expired`);
5. it is not on the list of revocations (`profile-revoked`), nor older than the oldest that the list still
   accepts for its recipe (`profile-superseded`).

Without a list nothing tells an older profile from the newest before it expires: pass one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from auditor.errors import (
    KeySyntaxError,
    KeyUnknownError,
    NoteSyntaxError,
    OptionError,
    ProfileExpiredError,
    ProfileInvalidError,
    ProfileRevokedError,
    ProfileSupersededError,
    ProfileUnsignedError,
    SignatureInvalidError,
)
from auditor.merkle.keys import Algorithm, PublicKey, Signer, parse_vkey
from auditor.merkle.notes import SignedNote, open_note, parse_note, sign_note
from auditor.profile import Profile
from auditor.profile_revocations import Revocations

REFUSALS = (
    ProfileUnsignedError,
    SignatureInvalidError,
    KeyUnknownError,
    NoteSyntaxError,
    ProfileExpiredError,
    ProfileRevokedError,
    ProfileSupersededError,
)
"""What `Trust.check` raises."""


def statement(profile: Profile) -> str:
    """What is signed."""
    return (
        f"auditor-profile/v1\nid {profile.id}\ncreated {profile.created}\n"
        f"expires {profile.expires or 'never'}\n"
    )


def sign_profile(profile: Profile, signer: Signer) -> Profile:
    """The profile with one signature more.

    Raises:
        SignatureInvalidError: it carries signatures of another content.
        KeySyntaxError: a key that signs tree heads only.
        NoteSyntaxError: the note it carries cannot be read.
    """
    note = SignedNote(statement(profile), ()) if profile.note is None else _own_note(profile, "")
    return replace(profile, note=sign_note(note, signer).serialize().decode())


def _own_note(profile: Profile, where: str) -> SignedNote:
    note = parse_note((profile.note or "").encode(), where)
    if note.text != statement(profile):
        raise SignatureInvalidError(f"the signature is of another profile than {profile.id}", where=where)
    return note


def _made(profile: Profile, where: str) -> datetime:
    try:
        made = datetime.fromisoformat(profile.created)
    except ValueError:
        made = None
    if made is None or made.tzinfo is None:
        raise ProfileInvalidError(f"created is {profile.created[:40]!r}, not a time with a zone", where=where)
    return made


def trusted_key(vkey: str) -> PublicKey:
    """A key that may vouch for profiles.

    Raises:
        KeySyntaxError: no vkey, or one that does not sign notes.
    """
    key = parse_vkey(vkey)
    if key.algorithm is not Algorithm.ED25519:
        raise KeySyntaxError(
            f"{key.name} signs checkpoints only", where="--trust", fix="use a key of kind log"
        )
    return key


@dataclass(frozen=True, slots=True)
class Trust:
    """Whose profiles are used.

    Attributes:
        keys: one signature of any of them is enough.
        revocations: what they took back; None where nobody looks.
        now: the time of the audit.
    """

    keys: Sequence[PublicKey]
    revocations: Revocations | None
    now: datetime

    def __post_init__(self) -> None:
        if not self.keys:
            raise OptionError(
                "revocations are worth what their signer is", where="--revocations", fix="add --trust"
            )

    def check(self, profile: Profile, where: str = "") -> Profile:
        """The profile with `signed_by` set, if it passes every step.

        Raises:
            ProfileUnsignedError, SignatureInvalidError, KeyUnknownError, NoteSyntaxError,
            ProfileExpiredError, ProfileRevokedError, ProfileSupersededError: the step that failed.
        """
        where = where or profile.id
        if profile.note is None:
            raise ProfileUnsignedError("nobody signed this profile", where=where, fix="audit profile sign")
        signers = open_note(_own_note(profile, where), self.keys, where)
        if profile.has_expired(self.now):
            raise ProfileExpiredError(f"expired on {profile.expires}", where=where, fix="calibrate anew")
        self._check_revocations(profile, where)
        return replace(profile, signed_by=tuple(f"{key.name}+{key.key_id.hex()}" for key in signers))

    def _check_revocations(self, profile: Profile, where: str) -> None:
        if self.revocations is None:
            return
        reason = self.revocations.revoked.get(profile.id)
        if reason is not None:
            raise ProfileRevokedError(f"was revoked: {reason}", where=where, fix="calibrate anew")
        oldest = self.revocations.oldest.get(profile.key.provider_recipe)
        if oldest is not None and _made(profile, where) < oldest:
            raise ProfileSupersededError(
                f"was made on {profile.created}; for {profile.key.provider_recipe} none from before "
                f"{oldest:%Y-%m-%dT%H:%M:%SZ} is accepted",
                where=where,
                fix="use the newer one",
            )
