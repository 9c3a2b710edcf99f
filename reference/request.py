"""One logged request as a replay needs it, and the samplers it is held against, tile by tile."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from auditor.reference.block_replay import BlockSampler, score_steps
from auditor.reference.deviations import Deviation
from auditor.reference.head import RowStats, effective_sampling
from auditor.reference.loading import ReferenceModel
from auditor.reference.noise import Draws, NoiseScheme
from auditor.reference.prefix_rules import RuledRequest, resolve_for
from auditor.reference.ruled_head import draw_ruled, score_ruled
from auditor.reference.sampling import SamplingSpec
from auditor.reference.speculation import Speculated, SpeculatedRows, Step
from auditor.reference.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Request:
    """What a replay needs of one logged request; ids are checked against the vocabulary by the caller.

    Attributes:
        spec: as declared; the scheme's engine rules are applied here.
        seed: None only for greedy requests.
        tokenizer: what rules about texts and end ids need (`prefix_rules.py`).
        ruled_by: whose rules, None for the scheme's engine; a greedy request's scheme does not tell.
        speculated: how drafts took part, None where every token is that of plain sampling.
    """

    prompt: tuple[int, ...]
    output: tuple[int, ...]
    spec: SamplingSpec
    seed: int | None
    scheme: NoiseScheme
    tokenizer: Tokenizer | None = None
    ruled_by: NoiseScheme | None = None
    speculated: Speculated | None = None

    def rules(self, spec: SamplingSpec, vocabulary: int) -> RuledRequest | None:
        """The walk of this request's output through the rules of `spec`; None when it has none.

        Raises:
            SamplingUnsupportedError, TokenOutOfRangeError: see `resolve_for`.
        """
        rules = resolve_for(spec, self.ruled_by or self.scheme, self.tokenizer, vocabulary)
        return None if rules is None else RuledRequest(rules, self.prompt)

    def speculated_rows(self, seed: int | None, part: slice) -> SpeculatedRows | None:
        """Coins and drafts of a run of output tokens under a seed."""
        if self.speculated is None or seed is None:
            return None
        return self.speculated.rows(seed, len(self.prompt), part.start, min(part.stop, len(self.output)))

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps of a rule that judges their drafts together; none where tokens are judged one by one."""
        return () if self.speculated is None else self.speculated.steps

    def block_sampler(self, spec: SamplingSpec, seed: int | None, vocabulary: int) -> BlockSampler:
        """What judges those steps, under an effective spec."""
        assert self.speculated is not None, "drafts take part"
        assert seed is not None, "coins are keyed by a seed"
        rules = self.rules(spec, vocabulary)
        return BlockSampler(self.speculated.rule, spec, self.scheme, seed, len(self.prompt), rules)


def shadow_steps(
    request: Request,
    deviation: Deviation,
    model: ReferenceModel,
    steps: Iterator[tuple[Step, torch.Tensor]],
    other_steps: Iterator[tuple[Step, torch.Tensor]],
) -> RowStats:
    """What a deviant would have made of each step of an honest log, scored as if it had been claimed."""
    vocabulary, seed = model.config.vocab_size, request.seed
    wrong_seed = None if seed is None else deviation.seed(seed)
    spec = effective_sampling(request.spec, request.scheme)
    wrong_spec = effective_sampling(deviation.sampling(request.spec), request.scheme)
    honest = request.block_sampler(spec, seed, vocabulary)
    wrong = request.block_sampler(wrong_spec, wrong_seed, vocabulary)
    return score_steps(honest, steps, np.asarray(request.output, np.int64), (wrong, other_steps))


class Replayed:
    """One request as one sampler serves it, scored tile by tile.

    Args:
        claimed: the tokens that are scored, int64 [n]; the logged ones if None. The logged ones stand before
            each of them either way.
    """

    def __init__(
        self, request: Request, vocabulary: int, claimed: npt.NDArray[np.int64] | None = None
    ) -> None:
        self._request = request
        self._spec = effective_sampling(request.spec, request.scheme)
        prompt = len(request.prompt)
        self._draws = Draws(request.scheme, request.seed, prompt, vocabulary, self._spec)
        self._rules = request.rules(self._spec, vocabulary)
        self._output = np.asarray(request.output, np.int64)
        self._claimed = self._output if claimed is None else claimed
        self.tiles: list[RowStats] = []

    def score(self, logits: torch.Tensor, part: slice) -> None:
        """Add the statistics of the output tokens of `part`; tiles come in order."""
        request, noise = self._request, self._draws.take(len(logits))
        coins = request.speculated_rows(request.seed, part)
        place = (self._rules, self._output, part.start, coins)
        self.tiles.append(score_ruled(logits, self._claimed[part], self._spec, request.scheme, noise, *place))

    @property
    def stats(self) -> RowStats:
        """Of all tiles so far."""
        return RowStats.concatenate(self.tiles)


class Shadow:
    """One request under one sampler, run honestly and by a deviant, tile by tile."""

    def __init__(self, request: Request, deviation: Deviation, model: ReferenceModel) -> None:
        seed, scheme = request.seed, request.scheme
        wrong_seed = None if seed is None else deviation.seed(seed)
        self._request, self._wrong_seed = request, wrong_seed
        vocabulary = model.config.vocab_size
        self.tiles: list[RowStats] = []
        self._scheme = scheme
        self._output = np.asarray(request.output, np.int64)
        self._spec = effective_sampling(request.spec, scheme)
        self._wrong_spec = effective_sampling(deviation.sampling(request.spec), scheme)
        prompt = len(request.prompt)
        self._draws = Draws(scheme, seed, prompt, vocabulary, self._spec)
        self._wrong_draws = Draws(scheme, wrong_seed, prompt, vocabulary, self._wrong_spec)
        self._rules = request.rules(self._spec, vocabulary)
        self._wrong_rules = request.rules(self._wrong_spec, vocabulary)

    def score(self, logits: torch.Tensor, wrong_logits: torch.Tensor, part: slice) -> None:
        """Add the statistics of what the deviant draws from its own logits at `part`; tiles come in order."""
        rows = len(logits)
        place = (self._wrong_rules, self._output, part.start)
        coins = self._request.speculated_rows(self._wrong_seed, part)
        noise = self._wrong_draws.take(rows)
        drawn = draw_ruled(wrong_logits, self._wrong_spec, self._scheme, noise, *place, coins)
        place = (self._rules, self._output, part.start)
        coins = self._request.speculated_rows(self._request.seed, part)
        noise = self._draws.take(rows)
        self.tiles.append(score_ruled(logits, drawn, self._spec, self._scheme, noise, *place, coins))
