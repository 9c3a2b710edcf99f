"""Where the steps of a speculative provider begin and end, read off its log.

Every step proposes drafts, keeps some from the front, and adds one token of its own, which never is the draft
it replaces: so where a step ends is read off the output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
import numpy.typing as npt

from auditor.errors import TraceFieldError

I64 = npt.NDArray[np.int64]

NO_DRAFT = -1
"""In place of a draft: the token came from plain sampling (a bonus token, or a step without drafts)."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step, as the log claims it.

    Row r of a step predicts the token after its first r drafts: its own token, or draft r + 1, stands there.

    Attributes:
        first: index of its first token in the output.
        drafts: ids judged; those behind a placeholder (a negative id) were not.
        kept: how many of them, from the front, the output has.
        ended: whether a token of the step's own follows; else the output ends amid its drafts.
    """

    first: int
    drafts: tuple[int, ...]
    kept: int
    ended: bool = True

    @property
    def tokens(self) -> int:
        """Output tokens that the step made."""
        return self.kept + self.ended

    @property
    def rows(self) -> int:
        """Rows that decide it: one for each draft, and the bonus token's if the output has one."""
        return max(len(self.drafts), self.tokens)

    @property
    def branch(self) -> tuple[int, ...]:
        """Drafts to be read after the step's tokens but the last, so that its other rows can be computed."""
        return self.drafts[self.tokens - 1 : self.rows - 1]


def steps_of(drafts: Sequence[Sequence[int]], output: Sequence[int], *, where: str = "") -> tuple[Step, ...]:
    """The steps of a log.

    Raises:
        TraceFieldError: as `drafts_of_steps`.
    """
    drafts_of_steps(drafts, output, where=where)
    steps: list[Step] = []
    first = 0
    for proposed in drafts:
        judged = tuple(takewhile(lambda draft: draft >= 0, proposed))
        pairs = zip(judged, output[first : first + len(judged)], strict=False)
        kept = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        steps.append(Step(first, judged, kept, ended=first + kept < len(output)))
        first += steps[-1].tokens
    return tuple(steps)


def drafts_of_steps(steps: Sequence[Sequence[int]], output: Sequence[int], *, where: str = "") -> I64:
    """The draft that was judged at each output token, int64 [output tokens].

    Args:
        steps: ids proposed by each step, empty for a step without drafts.

    Raises:
        TraceFieldError: the steps make more or fewer tokens than were logged.
    """
    judged: list[int] = []
    for number, step in enumerate(steps):
        if len(judged) >= len(output):
            raise TraceFieldError(
                f"field speculation.draft_token_ids: step {number} begins after the last of "
                f"{len(output)} output tokens",
                where=where,
            )
        for draft in step:
            judged.append(draft)
            if len(judged) > len(output) or output[len(judged) - 1] != draft:
                break
        else:
            judged.append(NO_DRAFT)
    if len(judged) < len(output):
        raise TraceFieldError(
            f"field speculation.draft_token_ids: {len(steps)} steps make {len(judged)} tokens, "
            f"{len(output)} were logged",
            where=where,
            fix="log one list of drafts for each step, empty ones too",
        )
    return np.array(judged[: len(output)], np.int64)
