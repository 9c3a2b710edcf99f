"""Trained verifiers: features of a response's blocks to one score, larger is more suspicious.

Heads and lexicon know the traces they were fitted on, so features of those traces look better than any new
one's. Cross-fitting (`CrossFitted`) trains the verifier on features of traces that the heads never saw;
without it, detection fell as inflation rose (coin.md section 6). No verifier is ever stored: they are
fitted where they are used, from traces and a seed, and nothing has to be unpickled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from auditor.hidden_tokens.features import F64, Extractor, Lexicon, OpenedResponse, Vectoriser, pooled
from auditor.hidden_tokens.matching import fit_extractor, require_scikit_learn

AB = 2
"""The first two block features are the matching heads' scores, all that CoIn's verifier has."""

_RULE_BELOW = 0.5


class Classifier(Protocol):
    """Block features of responses to scores."""

    def fit(self, blocks: Sequence[F64], labels: F64) -> None:
        """Learn from [blocks, f] arrays; label 1 is inflated."""
        ...

    def score(self, blocks: Sequence[F64]) -> F64:
        """Suspicion of each response, float64 [n]."""
        ...


class CoinRule:
    """CoIn's rule-based verifier: the share of blocks that either head gives less than one half."""

    def fit(self, blocks: Sequence[F64], labels: F64) -> None:
        """Nothing to learn."""

    def score(self, blocks: Sequence[F64]) -> F64:
        """See `Classifier.score`."""
        return np.array([float((b[:, :AB].min(axis=1) < _RULE_BELOW).mean()) for b in blocks])


class GradientBoosting:
    """Gradient-boosted trees on statistics over blocks (scikit-learn).

    Args:
        features: how many of the block features, from the first.

    Raises:
        OptionError: the `content` extra is not installed.
    """

    def __init__(self, seed: int, features: int | None = None) -> None:
        require_scikit_learn()
        from sklearn.ensemble import HistGradientBoostingClassifier  # noqa: PLC0415

        self._features = features
        self._model = HistGradientBoostingClassifier(
            max_iter=120, learning_rate=0.08, min_samples_leaf=15, random_state=seed
        )

    def _rows(self, blocks: Sequence[F64]) -> F64:
        return np.stack([pooled(b[:, : self._features]) for b in blocks])

    def fit(self, blocks: Sequence[F64], labels: F64) -> None:
        """See `Classifier.fit`; both classes weigh the same."""
        honest = max(1.0, float((labels == 0).sum()))
        weights = np.where(labels == 0, float((labels == 1).sum()) / honest, 1.0)
        self._model.fit(self._rows(blocks), labels, sample_weight=weights)

    def score(self, blocks: Sequence[F64]) -> F64:
        """See `Classifier.score`."""
        return np.asarray(self._model.decision_function(self._rows(blocks)), np.float64)


class DeepSets:
    """CoIn's learned verifier: a permutation-invariant network over the blocks' (A, B) pairs.

    Source: Zaheer et al., Deep Sets, arXiv 1703.06114; widths are ours, the paper's are not published.
    """

    def __init__(self, seed: int, features: int | None = AB) -> None:
        self._features, self._generator = features, torch.Generator().manual_seed(seed)
        self._inner: list[torch.Tensor] = []

    def _packed(self, blocks: Sequence[F64]) -> tuple[torch.Tensor, torch.Tensor]:
        rows = torch.from_numpy(np.concatenate([b[:, : self._features] for b in blocks]).astype(np.float32))
        return rows, torch.tensor([len(b) for b in blocks])

    def fit(self, blocks: Sequence[F64], labels: F64) -> None:
        """See `Classifier.fit`; both classes weigh the same."""
        rows, counts = self._packed(blocks)
        shapes = [(rows.shape[1], 32), (32,), (32, 32), (32,), (32, 32), (32,), (32, 1), (1,)]
        self._inner = [
            (torch.randn(s, generator=self._generator) / (s[0] ** 0.5 if len(s) == 2 else 1e9))
            .requires_grad_()
            for s in shapes
        ]  # fmt: skip
        target = torch.from_numpy(labels.astype(np.float32))
        honest = (target == 0).sum().clamp_min(1)
        weight = torch.where(target == 0, (target == 1).sum() / honest, 1.0)
        optimiser = torch.optim.Adam(self._inner, lr=5e-3)
        for _ in range(300):
            optimiser.zero_grad()
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                self._forward(rows, counts), target, weight=weight
            )
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()

    def _forward(self, rows: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        a, b, c, d, e, f, g, h = self._inner
        each = torch.relu(torch.relu(rows @ a + b) @ c + d)
        means = torch.stack([part.mean(dim=0) for part in torch.split(each, counts.tolist())])
        return (torch.relu(means @ e + f) @ g + h).squeeze(1)

    def score(self, blocks: Sequence[F64]) -> F64:
        """See `Classifier.score`."""
        with torch.inference_mode():
            return np.asarray(self._forward(*self._packed(blocks)).double().numpy())


@dataclass(frozen=True, slots=True)
class Example:
    """One training response: which honest response it was made of, and whether it was inflated."""

    origin: int
    response: OpenedResponse
    inflated: bool


class CrossFitted:
    """Gradient boosting on ten features; a half's verifier learns from features of heads of the other half.

    The score is the mean of both halves' scores, each of its own heads and verifier.

    Args:
        examples: honest responses and inflated ones made of them; what has one origin stays in one half.

    Raises:
        OptionError: too few examples, or the `content` extra is not installed.
    """

    def __init__(
        self, examples: Sequence[Example], vectoriser: Vectoriser, vocabulary: int, seed: int
    ) -> None:
        self._vectoriser = vectoriser
        self._halves: list[tuple[Extractor, GradientBoosting]] = []
        for half in (0, 1):
            heads = [e.response for e in examples if e.origin % 2 == half and not e.inflated]
            extractor = fit_extractor(heads, vectoriser.vectors(heads), vocabulary, seed + half)
            learn = [e for e in examples if e.origin % 2 != half]
            verifier = GradientBoosting(seed + half)
            blocks = self._blocks(extractor, [e.response for e in learn])
            verifier.fit(blocks, np.array([float(e.inflated) for e in learn]))
            self._halves.append((extractor, verifier))

    @property
    def lexicons(self) -> tuple[Lexicon, ...]:
        """Of the honest examples, half by half."""
        return tuple(extractor.lexicon for extractor, _ in self._halves)

    def _blocks(self, extractor: Extractor, responses: Sequence[OpenedResponse]) -> list[F64]:
        vectors = self._vectoriser.vectors(responses)
        return [extractor.blocks(r, v) for r, v in zip(responses, vectors, strict=True)]

    def score(self, responses: Sequence[OpenedResponse]) -> F64:
        """Suspicion of each response, float64 [n]."""
        scores = [verifier.score(self._blocks(e, responses)) for e, verifier in self._halves]
        return np.asarray(np.mean(scores, axis=0), np.float64)
