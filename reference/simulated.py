"""What a dishonest provider would have returned at each position of an honest log, and how that scores.

The prefixes stay the honest ones, so nothing is decoded: at every logged prefix the provider draws its own
token from its own logits, by the noise it really uses; that token is then scored as if it had been claimed.
What shows is the evidence per token, not the drift of the text. `Shadow` (`request.py`) is the quick form for
deviations that change no more than model, prompt, parameters or seed; here every seam is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from auditor.reference.deviations import HONEST, Deviation, Prompt, Served, Serving
from auditor.reference.head import NoiseRows, RowStats, effective_sampling
from auditor.reference.layers.linear import ROW_TILE
from auditor.reference.loading import ReferenceModel
from auditor.reference.noise import Draws
from auditor.reference.request import Request
from auditor.reference.ruled_head import draw_ruled, score_ruled
from auditor.reference.running import Ask


@dataclass(frozen=True, slots=True)
class Views:
    """One request's output positions by three models: who audits, who is honest, who is not.

    Attributes:
        reference, honest, deviant: (model, hidden states [n, hidden] after the prompt it was fed).
    """

    reference: tuple[ReferenceModel, torch.Tensor]
    honest: tuple[ReferenceModel, torch.Tensor]
    deviant: tuple[ReferenceModel, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Simulated:
    """One request as a dishonest provider would have answered it.

    Attributes:
        stats: the reference's scores of what it would have returned.
        honest: int64 [n], what the honest provider would have returned there.
        acted: bool [n], which positions it served dishonestly.
    """

    stats: RowStats
    honest: npt.NDArray[np.int64]
    acted: npt.NDArray[np.bool_]

    @property
    def differs(self) -> npt.NDArray[np.bool_]:
        """Where its token is another than the honest provider's, bool [n]."""
        return np.asarray(self.stats.claimed != self.honest)


class _Sampler:
    """A provider's draws for one request: its parameters, seed and rules."""

    def __init__(self, request: Request, deviation: Deviation, vocabulary: int) -> None:
        self.spec = effective_sampling(deviation.sampling(request.spec), request.scheme)
        seed = None if request.seed is None else deviation.seed(request.seed)
        first = len(request.prompt) + deviation.shift
        self._draws = Draws(request.scheme, seed, first, vocabulary, self.spec)
        self.rules = request.rules(self.spec, vocabulary)
        self._request, self._output = request, np.asarray(request.output, np.int64)

    def noise(self, rows: int) -> NoiseRows:
        """Noise of the next rows."""
        return self._draws.take(rows)

    def draw(self, logits: torch.Tensor, noise: NoiseRows, start: int) -> npt.NDArray[np.int64]:
        """The token that each row samples."""
        return draw_ruled(logits, self.spec, self._request.scheme, noise, self.rules, self._output, start)


def simulate(request: Request, number: int, deviation: Deviation, views: Views) -> Simulated:
    """Score what the provider would have returned in a request's place.

    Args:
        request: an honest one, without speculation.
        number: of the request in its log.
    """
    vocabulary, output = views.reference[0].config.vocab_size, np.asarray(request.output, np.int64)
    honest, wrong = _Sampler(request, HONEST, vocabulary), _Sampler(request, deviation, vocabulary)
    tiles, honestly, acted = [], [], []
    for start in range(0, len(output), ROW_TILE):
        part = slice(start, min(start + ROW_TILE, len(output)))
        own, right, theirs = (
            model.logits(states[part]) for model, states in (views.reference, views.honest, views.deviant)
        )
        served = _served(request, number, output, part, right)
        if deviation.logits is not None:
            theirs = deviation.logits(theirs, served)
        noise = honest.noise(len(own))
        drawn = _drawn(wrong, theirs, start, deviation, served)
        meant = honest.draw(right, noise, start)
        applies = np.ones(len(own), np.bool_) if deviation.applies is None else deviation.applies(served)
        drawn = np.where(applies, drawn, meant)
        scored = score_ruled(own, drawn, honest.spec, request.scheme, noise, honest.rules, output, start)
        tiles.append(scored)
        honestly.append(meant)
        acted.append(applies)
    return Simulated(RowStats.concatenate(tiles), np.concatenate(honestly), np.concatenate(acted))


def served(
    asked: Sequence[tuple[Request, Prompt]],
    deviation: Deviation,
    models: tuple[ReferenceModel, ReferenceModel | None],
) -> list[Request]:
    """What a provider that decodes by itself (`Deviation.serves`) would have logged for each request.

    Args:
        models: the declared one, as the provider runs it, and another that it has.
    """
    assert deviation.serves is not None, "a provider that decodes by itself"
    claimed = [
        replace(request, spec=deviation.declares(request.spec), tokenizer=prompt.tokenizer)
        for request, prompt in asked
    ]
    asks = [
        Ask(
            prompt=request.prompt,
            noise_prompt_tokens=len(request.prompt),
            spec=request.spec,
            seed=request.seed or 0,
            scheme=request.scheme,
            max_tokens=request.spec.max_tokens or len(request.output),
            stop_ids=frozenset(prompt.tokenizer.eos_ids),
            tokenizer=prompt.tokenizer,
        )
        for request, (_, prompt) in zip(claimed, asked, strict=True)
    ]
    outputs = deviation.serves(Serving(models[0], models[1], asks))
    return [replace(request, output=output) for request, output in zip(claimed, outputs, strict=True)]


def _served(
    request: Request, number: int, output: npt.NDArray[np.int64], part: slice, honest: torch.Tensor
) -> Served:
    before = np.concatenate([[request.prompt[-1]], output[:-1]])
    position = np.arange(part.start, part.stop)
    return Served(number, request.seed or 0, position, before[part], honest)


def _drawn(
    sampler: _Sampler, logits: torch.Tensor, start: int, deviation: Deviation, served: Served
) -> npt.NDArray[np.int64]:
    noise = sampler.noise(len(logits))
    drawn = sampler.draw(logits, noise, start)
    if not deviation.slips:
        return drawn
    chance = np.random.default_rng([served.seed, start]).random(len(drawn)) < deviation.slips
    without = logits.clone()
    without[torch.from_numpy(np.flatnonzero(chance)), torch.from_numpy(drawn[chance])] = -torch.inf
    return np.where(chance, sampler.draw(without, noise, start), drawn)
