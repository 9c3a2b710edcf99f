"""Reported ids against the canonical tokenization of their text, cheap checks first. Pure.

1. *Round trip*: the ids spell the text; the canonical count is n*, the excess (n - n*) / n*.
2. *Deviations*: the runs of tokens between two common boundaries that are not the canonical ones, each with
   the artefact classes of honest sampling that it falls into (`ARTEFACTS`). A deviation never accuses by
   itself.
3. *Splits*: deviations that are one canonical token cut in two, which is what the published overcharging
   heuristic does (arXiv 2505.21627), and their likelihood under a provider who splits beside an honest one.
4. *Shadow bill*: the same money by characters, which no tokenization inflates.

Ids outside the declared filters and ids that do not follow their seed are found by replay, not here.
Classes 1 to 3 overlap the taxonomy of "Say Anything but This", arXiv 2601.14658; the rest is experience.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.special import logsumexp, xlog1py, xlogy

from auditor.reference.token_bytes import TokenBytes
from auditor.token_counts.lattice import F64, Ids

ARTEFACTS = {
    "boundary-space": "servers strip or add a space where the response begins",
    "whitespace-run": "indentation, trailing space and CRLF have several likely tokenizations",
    "resegmented-word": "rare and long words are sampled piece by piece",
    "case-or-contraction": "capitals inside a word and apostrophes are cut in more than one way",
    "digit-group": "digits are grouped differently by training text and by the encoder",
    "punctuation": "quotes and marks merge with what follows or do not",
    "multi-byte": "a character without a token of its own is emitted byte by byte",
    "special-spelling": "the name of a special token, written with ordinary tokens, is text",
    "constrained": "grammar and JSON decoding forbid tokens, so it is not canonical by construction",
    "stop-truncation": "a stop string ends the text inside a token",
    "server-text": "tool calls and templates put text in that nobody sampled",
    "token-healing": "a resumed response begins inside a token",
}
"""Classes of honest deviations, and why they are honest."""

SPLIT_RATES = (0.001, 0.01, 0.03, 0.1, 0.3, 0.9)
"""Shares of splittable tokens that a dishonest provider may have split."""
_HONEST = 0.01


@dataclass(frozen=True, slots=True)
class Deviation:
    """A run of reported tokens where the canonical ones are others.

    Attributes:
        at: number of its first reported token. reported, canonical: the ids of both.
        classes: names in `ARTEFACTS` that excuse it; empty when none does.
        is_split: one canonical token was reported as two.
    """

    at: int
    reported: Ids
    canonical: Ids
    classes: tuple[str, ...]
    is_split: bool


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """Reported and canonical numbers of tokens, and where the two sequences part."""

    reported: int
    canonical: int
    deviations: tuple[Deviation, ...]

    @property
    def excess(self) -> int:
        """Tokens reported beyond the canonical number; negative if fewer."""
        return self.reported - self.canonical

    @property
    def relative(self) -> float:
        """The same as a share of the canonical number."""
        return self.excess / max(1, self.canonical)

    @property
    def splits(self) -> int:
        """Canonical tokens that were reported as two."""
        return sum(d.is_split for d in self.deviations)


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What of a trace excuses deviations: constrained decoding, a cut end, text put in by the server."""

    constrained: bool = False
    stopped_by_string: bool = False
    server_text: bool = False


def round_trip(
    reported: Sequence[int], canonical: Sequence[int], vocabulary: TokenBytes, circumstances: Circumstances
) -> RoundTrip | None:
    """Compare; None when the two spell different texts, which is a finding of its own."""
    if _units(reported, vocabulary) != _units(canonical, vocabulary):
        return None
    own, other = _boundaries(reported, vocabulary), _boundaries(canonical, vocabulary)
    common = sorted(own.keys() & other.keys())
    deviations = []
    for start, end in pairwise(common):
        here = tuple(reported[own[start] : own[end]])
        there = tuple(canonical[other[start] : other[end]])
        if here != there:
            text = vocabulary.join(here).decode(errors="replace")
            first, last = start == 0, end == common[-1]
            classes = _classes(text, circumstances, first=first, last=last)
            is_split = len(there) == 1 and len(here) == 2
            deviations.append(Deviation(own[start], here, there, classes, is_split))
    return RoundTrip(len(reported), len(canonical), tuple(deviations))


def _units(ids: Sequence[int], vocabulary: TokenBytes) -> list[int | bytes]:
    """The text with special tokens as units of their own."""
    units: list[int | bytes] = []
    for token in ids:
        spelled = vocabulary.spelled[token] if token < vocabulary.size else None
        if spelled is None:
            units.append(token)
        elif units and isinstance(units[-1], bytes):
            units[-1] += spelled
        else:
            units.append(spelled)
    return units


def _boundaries(ids: Sequence[int], vocabulary: TokenBytes) -> dict[int, int]:
    """Place in the text (a special token counts as one byte) -> number of the token that begins there."""
    found, place = {0: 0}, 0
    for number, token in enumerate(ids):
        place += len((vocabulary.spelled[token] if token < vocabulary.size else None) or b"x")
        found[place] = number + 1
    return found


def _classes(text: str, circumstances: Circumstances, *, first: bool, last: bool) -> tuple[str, ...]:
    body = text.strip()
    found = {
        "boundary-space": first and text[:1].isspace(),
        "whitespace-run": bool(re.search(r"\s\s|[\n\r\t]|\s$", text)),
        "resegmented-word": len(body) >= 2 and body.isalpha(),
        "case-or-contraction": bool(re.search(r"[a-z][A-Z]|['\u2019]", body)),
        "digit-group": bool(body) and all(c.isdigit() or c in ".," for c in body),
        "punctuation": bool(body) and not any(c.isalnum() for c in body),
        "multi-byte": not text.isascii(),
        "special-spelling": bool(re.search(r"<\|?[\w/]+\|?>|\[/?[A-Z]+\]", body)),
        "constrained": circumstances.constrained,
        "stop-truncation": last and circumstances.stopped_by_string,
        "server-text": circumstances.server_text,
        "token-healing": first and not text[:1].isspace(),
    }
    return tuple(name for name in ARTEFACTS if found[name])


def split_log_ratios(log_p_reported: float, log_p_canonical: float, splits: Sequence[int], whole: int) -> F64:
    """Log likelihood ratio of "canonical tokens were split in two afterwards" to honest sampling, by rate.

    The rival samples a response and splits each splittable token with one of `SPLIT_RATES`, evenly among the
    ways to: a distribution over reported ids. So for each rate the product over responses is an e-value, and
    the mean over rates is one (`split_log_e`). A hundredth of the rival is honest, lest one response that it
    cannot have made end the test.

    Args:
        log_p_reported, log_p_canonical: of the ids under the claimed model and sampler; the canonical ones
            are -inf where the rival cannot have made the reported ones.
        splits: for each token found split, in how many ways it could have been. whole: splittable tokens that
            were left whole.
    """
    rates = np.array(SPLIT_RATES)
    made = xlogy(len(splits), rates) + xlog1py(whole, -rates) - float(np.log(np.maximum(splits, 1)).sum())
    with np.errstate(invalid="ignore"):
        ratio = np.where(np.isneginf(log_p_canonical), -np.inf, made + log_p_canonical - log_p_reported)
    return np.asarray(np.logaddexp(np.log1p(-_HONEST) + ratio, np.log(_HONEST)))


def split_log_e(ratios: Sequence[F64]) -> float:
    """Log e-value of independent responses that tokens were split."""
    if not len(ratios):
        return 0.0
    return float(logsumexp(np.sum(ratios, axis=0)) - np.log(len(SPLIT_RATES)))


def ways_to_split(token: int, vocabulary: TokenBytes) -> int:
    """In how many ways two tokens spell one."""
    spelled = vocabulary.spelled[token] if token < vocabulary.size else None
    if not spelled:
        return 0
    halves = ((spelled[:n], spelled[n:]) for n in range(1, len(spelled)))
    return sum(len(vocabulary.named(left)) * len(vocabulary.named(right)) for left, right in halves)


def shadow_bill(characters: int, price_per_token: float, characters_per_token: float) -> float:
    """What the text costs when characters are paid, at a price that is the same for honest tokens.

    Args:
        characters_per_token: mean over honest traffic of the claimed tokenizer. Among additive prices only
            one by characters leaves a provider nothing to gain from tokenization (arXiv 2505.21627).
    """
    return characters * price_per_token / characters_per_token
