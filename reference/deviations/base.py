"""`Deviation`: one way of not running what was sold, as changes on the seams of an honest provider."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from auditor.reference.loading import ReferenceModel
from auditor.reference.running import Ask
from auditor.reference.sampling import SamplingSpec
from auditor.reference.tokenizer import Tokenizer

Timing = Literal["from-start", "after-trigger", "periodic"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as declared: its ids, and the conversation they came from when that was logged."""

    token_ids: tuple[int, ...]
    messages: tuple[Mapping[str, Any], ...] | None
    tokenizer: Tokenizer


def _same_model(model: ReferenceModel, other: ReferenceModel | None) -> ReferenceModel:
    del other
    return model


def _same_prompt(prompt: Prompt) -> Sequence[int]:
    return prompt.token_ids


def _same_sampling(spec: SamplingSpec) -> SamplingSpec:
    return spec


def _same_seed(seed: int) -> int:
    return seed


@dataclass(frozen=True, slots=True)
class Served:
    """Some output positions of one request, as a dishonest sampler sees them.

    Attributes:
        number: of the request, from 0. seed: its declared one.
        position: int64 [n], output tokens before each.
        last: int64 [n], the token before each.
        honest: float32 [n, V], what the declared model would say.
    """

    number: int
    seed: int
    position: npt.NDArray[np.int64]
    last: npt.NDArray[np.int64]
    honest: torch.Tensor


def _same_declared(spec: SamplingSpec) -> SamplingSpec:
    return spec


@dataclass(frozen=True, slots=True)
class Serving:
    """Requests to be answered by a provider that does not decode as declared.

    Attributes:
        target: the declared model, as the provider runs it. other: a second one that it has, if any.
        asks: what each client asked, rules included; a tokenizer is in each.
    """

    target: ReferenceModel
    other: ReferenceModel | None
    asks: Sequence[Ask]


Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Deviation:
    """What the provider runs instead of what it declares; every seam defaults to honest.

    Attributes:
        name: `family/variant`, the cause named by a diagnosis.
        gain: what a provider gains by it.
        source: where it is described or seen.
        model: (declared model, some other model or None) -> model really run.
        prompt: declared prompt -> ids really fed.
        sampling: declared parameters -> parameters really used.
        seed: declared seed -> seed really used.
        logits: (logits [n, V], positions) -> logits really sampled from.
        slips: share of the tokens at which the runner-up is returned.
        applies: which positions (boolean [n]) are served dishonestly; None for all.
        shift: positions by which the noise is off.
        declares: a log's parameters -> those that this provider's log declares, where its trick needs others.
        serves: requests -> output ids of each, for a provider that decodes by itself: then the log is what it
            really returned, prefixes too, and the seams above are not used.
        unseen: what catches it where its tokens are honest ones; empty where the tokens do.
        timing: from which token on it shows: the first, or once a condition holds, or now and then.
        decodes: whether it can serve (`audit generate`), or only be measured on a log (`audit matrix`).
        needs_other_model: whether `model` wants a second model.
        needs_noise: whether it shows only in requests that draw noise (not in greedy ones).
        needs_filter: whether it shows only in requests with a filter.
        needs_penalty: whether it shows only in requests with a penalty.
    """

    name: str
    gain: str
    source: str
    model: Callable[[ReferenceModel, ReferenceModel | None], ReferenceModel] = _same_model
    prompt: Callable[[Prompt], Sequence[int]] = _same_prompt
    sampling: Callable[[SamplingSpec], SamplingSpec] = _same_sampling
    seed: Callable[[int], int] = _same_seed
    logits: Callable[[torch.Tensor, Served], torch.Tensor] | None = None
    slips: float = 0.0
    applies: Callable[[Served], npt.NDArray[np.bool_]] | None = None
    shift: int = 0
    declares: Callable[[SamplingSpec], SamplingSpec] = _same_declared
    serves: Callable[[Serving], Sequence[Ids]] | None = None
    unseen: str = ""
    timing: Timing = "from-start"
    decodes: bool = True
    needs_other_model: bool = False
    needs_noise: bool = False
    needs_filter: bool = False
    needs_penalty: bool = False

    @property
    def family(self) -> str:
        """The first part of its name."""
        return self.name.partition("/")[0]

    def shows_in(self, spec: SamplingSpec) -> bool:
        """Whether a request with these parameters could show the deviation at all."""
        return not (
            (self.needs_noise and spec.greedy)
            or (self.needs_filter and (spec.greedy or not spec.filtered))
            or (self.needs_penalty and not spec.penalised)
        )
