"""Any-subset speculative decoding (ASSD, arXiv 2504.20456), coupled: one-by-one decoding's tokens, sooner.

Noise is keyed by (seed, position), never by turn, so the same tokens come out whatever was guessed. A round
is two passes: the model guesses the next positions all at once, each given only what is known; a second pass
gives each its distribution as if the guesses before it were true. A guess stands while the second pass, with
the noise of its position, returns it; the first that does not is replaced by what does. The first guess was
made under what the second pass sees, so it always stands: a round makes at least two tokens, and there are
never more passes than tokens. (The paper's ratio test draws both sides afresh and is lossless in distribution
only.)

*Ties.* Passes over other contents differ in the last bits; where two tokens nearly tie, the one-by-one pass
decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from auditor.errors import OptionError, TokenOutOfRangeError
from auditor.kernels.keyed_noise import keyed_noise
from auditor.reference.any_subset.model import AnyOrderModel
from auditor.reference.noise import SCHEMES, GumbelPosition

TIE_LOGITS = 1e-9


@dataclass(frozen=True, slots=True)
class Decoded:
    """A filled text.

    Attributes:
        passes: of the model. rounds: of guessing and verifying.
    """

    tokens: tuple[int, ...]
    passes: int
    rounds: int


@dataclass(eq=False)
class _Filling:
    """A text in the making."""

    model: AnyOrderModel
    tokens: Tensor
    order: Tensor
    ranks: Tensor
    noise: Tensor
    temperature: float
    done: int = 0
    passes: int = 0

    @classmethod
    def begin(
        cls, model: AnyOrderModel, known: dict[int, int], order: Sequence[int], seed: int, temperature: float
    ) -> _Filling:
        if sorted([*known, *order]) != list(range(model.length)):
            raise OptionError("known positions and the order must name each position once")
        if any(not 0 <= token < model.vocabulary for token in known.values()):
            raise TokenOutOfRangeError(f"a known token is outside the vocabulary of {model.vocabulary}")
        if temperature < 0:
            raise OptionError(f"temperature {temperature}")
        tokens, ranks = (
            torch.zeros(model.length, dtype=torch.int64),
            torch.zeros(model.length, dtype=torch.int64),
        )
        for position, token in known.items():
            tokens[position] = token
        turns = torch.tensor(list(order), dtype=torch.int64)
        ranks[turns] = torch.arange(1, len(turns) + 1)
        scheme = SCHEMES["gumbel-pos-v1"]
        assert isinstance(scheme, GumbelPosition), "keyed by position"
        keys = scheme.row_keys(seed, 0, 0, model.length)
        ids = np.broadcast_to(np.arange(model.vocabulary), (model.length, model.vocabulary))
        noise = torch.from_numpy(np.asarray(keyed_noise(scheme.noise, keys, ids)))
        return cls(model, tokens, turns, ranks, noise, temperature)

    def scores(self, tokens: Tensor, seen_from: Tensor, wanted: Tensor) -> Tensor:
        """Logits + T * noise, [wanted, V]."""
        self.passes += 1
        logits = self.model.logits(tokens, self.ranks, seen_from, wanted)
        return logits + self.temperature * self.noise[wanted]

    def next_one(self) -> int:
        """The next token, by itself."""
        scores = self.scores(self.tokens, self.ranks, self.order[self.done : self.done + 1])
        return int(scores[0].argmax())

    def put(self, token: int) -> None:
        self.tokens[self.order[self.done]] = token
        self.done += 1


def decode_one_by_one(
    model: AnyOrderModel,
    known: dict[int, int],
    order: Sequence[int],
    *,
    seed: int,
    temperature: float = 1.0,
) -> Decoded:
    """The plain loop: a pass for each token, in the given order.

    Args:
        known: position -> token. order: the other positions, each once.
        temperature: 0 is greedy.

    Raises:
        OptionError: positions missing or named twice. TokenOutOfRangeError: a known token.
    """
    filling = _Filling.begin(model, known, order, seed, temperature)
    while filling.done < len(order):
        filling.put(filling.next_one())
    return Decoded(tuple(filling.tokens.tolist()), filling.passes, 0)


def decode(
    model: AnyOrderModel,
    known: dict[int, int],
    order: Sequence[int],
    *,
    seed: int,
    temperature: float = 1.0,
    guesses: int = 10,
) -> Decoded:
    """`decode_one_by_one` in rounds of up to `guesses` positions: the same tokens.

    Raises:
        OptionError, TokenOutOfRangeError: as there; fewer than one guess.
    """
    if guesses < 1:
        raise OptionError(f"{guesses} guesses a round")
    filling = _Filling.begin(model, known, order, seed, temperature)
    rounds = 0
    while filling.done < len(order):
        wanted = filling.order[filling.done : filling.done + guesses]
        if len(wanted) == 1:
            filling.put(filling.next_one())
            continue
        rounds += 1
        _round(filling, wanted)
    return Decoded(tuple(filling.tokens.tolist()), filling.passes, rounds)


def _round(filling: _Filling, wanted: Tensor) -> None:
    first = filling.ranks.clone()
    first[wanted] = filling.done + 1  # each sees only what is known
    guessed = filling.scores(filling.tokens, first, wanted).argmax(1)
    tokens = filling.tokens.clone()
    tokens[wanted] = guessed
    scores = filling.scores(tokens, filling.ranks, wanted)
    best = scores.topk(2, dim=1)
    for guess, (token, _), (own, rival) in zip(
        guessed.tolist(), best.indices.tolist(), best.values.tolist(), strict=True
    ):
        winner = token if own - rival > TIE_LOGITS else filling.next_one()
        filling.put(winner)
        if winner != guess:
            return
