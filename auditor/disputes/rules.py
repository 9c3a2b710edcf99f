r"""A dispute's life. Pure.

    filed --answer--> answered --answer--> answered
      \                  \
       `--- resolve ------`---> resolved: upheld, rejected or withdrawn

Invariants: what was said is never changed, only added to; a resolved dispute is final (another may be filed
on new evidence); at most one about an audit is open.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from auditor.service.errors import ConflictError, RequestInvalidError

Kind = Literal["filed", "answered", "resolved"]
Outcome = Literal["upheld", "rejected", "withdrawn"]
OUTCOMES: tuple[Outcome, ...] = ("upheld", "rejected", "withdrawn")
MOST_STATEMENT = 20_000
MOST_EVIDENCE = 200
_MOST_NAME = 200


@dataclass(frozen=True, slots=True)
class Said:
    """What somebody said: a filing, an answer or a resolution.

    Attributes:
        actor: who, in their own words.
        evidence: ids of what it rests on: `aud_.../N` is a request of an audit, anything else is a name.

    Raises:
        RequestInvalidError: empty, too long, or not printable.
    """

    actor: str
    statement: str
    evidence: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < len(self.actor) <= _MOST_NAME or not self.actor.isprintable():
            raise RequestInvalidError(f"1 to {_MOST_NAME} printable characters", where="by")
        if not 0 < len(self.statement.strip()) <= MOST_STATEMENT or "\0" in self.statement:
            raise RequestInvalidError(f"1 to {MOST_STATEMENT} characters", where="statement")
        if len(self.evidence) > MOST_EVIDENCE:
            raise RequestInvalidError(f"at most {MOST_EVIDENCE} ids", where="evidence")
        for one in self.evidence:
            if not 0 < len(one) <= _MOST_NAME or not one.isprintable():
                raise RequestInvalidError(f"ids of 1 to {_MOST_NAME} printable characters", where="evidence")


def after(state: Kind, kind: Kind, dispute_id: str) -> Kind:
    """The state after something was said.

    Raises:
        ConflictError: the dispute is resolved, or this cannot come next.
    """
    if state == "resolved":
        raise ConflictError("the dispute is resolved", where=dispute_id, fix="file another on new evidence")
    if kind == "filed":
        raise ConflictError("the dispute is filed already", where=dispute_id)
    return kind


def evidence_number(evidence: str, audit_id: str) -> int | None:
    """The number of the audit's request that an evidence id names; None for another kind of id.

    Raises:
        RequestInvalidError: it is about another audit, or no number.
    """
    if not evidence.startswith("aud_"):
        return None
    named, _, number = evidence.partition("/")
    if named != audit_id or not number.isascii() or not number.isdigit() or len(number) > 9:
        raise RequestInvalidError(
            "an evidence id of another audit, or without a number", where="evidence", fix=f"{audit_id}/0"
        )
    return int(number)
