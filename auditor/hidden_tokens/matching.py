"""Matching heads: does this pair of vectors belong together? Trained on pairs and on pairs mixed up."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch

from auditor.errors import OptionError
from auditor.hidden_tokens.embedders import F32
from auditor.hidden_tokens.features import F64, Extractor, Lexicon, OpenedResponse, Vectors

_WIDTH = 64


def require_scikit_learn() -> None:
    """Refuse where trained verifiers cannot be had.

    Raises:
        OptionError: the `content` extra is not installed.
    """
    try:
        import sklearn  # noqa: F401, PLC0415
    except ImportError:
        raise OptionError("trained verifiers need scikit-learn", fix="install the `content` extra") from None


def mixed_up(left: F32, right: F32, groups: Sequence[int], seed: int) -> tuple[F32, F32, F64]:
    """Matched pairs, then as many with a right side of another group; labels 1 and 0."""
    rng = np.random.default_rng(seed)
    own = np.asarray(groups)
    other = rng.integers(len(own), size=len(own))
    for _ in range(20):
        same = own[other] == own
        other[same] = rng.integers(len(own), size=int(same.sum()))
    labels = np.concatenate([np.ones(len(own)), np.zeros(len(own))])
    return np.concatenate([left, left]), np.concatenate([right, right[other]]), labels


class PerceptronHead:
    """64 hidden units on [u, v, |u - v|, u v, cos]."""

    def __init__(self, left: F32, right: F32, labels: F64, seed: int) -> None:
        from sklearn.neural_network import MLPClassifier  # noqa: PLC0415

        self._model = MLPClassifier(
            (_WIDTH,), alpha=1e-3, early_stopping=True, max_iter=60, random_state=seed
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it stopped at max_iter
            self._model.fit(_joined(left, right), labels)

    def score(self, left: F32, right: F32) -> F64:
        """See `MatchingHead.score`."""
        return np.asarray(self._model.predict_proba(_joined(left, right))[:, 1], np.float64)


def _joined(left: F32, right: F32) -> F32:
    cosine = (left * right).sum(axis=1, keepdims=True)
    return np.concatenate([left, right, np.abs(left - right), left * right, cosine], axis=1)


class CosineHead:
    """CoIn's released kind, `cos_sim`: a learned linear map of both sides, their cosine, a logistic of it.

    Source: model card of CoIn-Matching-Head (arXiv 2505.13778); loss and learning rate are not published,
    binary cross-entropy and Adam are our reading.
    """

    def __init__(self, left: F32, right: F32, labels: F64, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        size = left.shape[1]
        self._map = torch.randn(size, _WIDTH, generator=generator) / size**0.5
        self._scale, self._shift = torch.tensor(4.0), torch.tensor(-2.0)
        parameters = [self._map, self._scale, self._shift]
        for parameter in parameters:
            parameter.requires_grad_()
        optimiser = torch.optim.Adam(parameters, lr=3e-3)
        u, v, y = (torch.from_numpy(np.asarray(a, np.float32)) for a in (left, right, labels))
        for _ in range(30):
            order = torch.randperm(len(y), generator=generator)
            for part in torch.split(order, 256):
                optimiser.zero_grad()
                loss = torch.nn.functional.binary_cross_entropy_with_logits(
                    self._logits(u[part], v[part]), y[part]
                )
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
        for parameter in parameters:
            parameter.detach_()

    def _logits(self, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        cosine = torch.nn.functional.cosine_similarity(u @ self._map, v @ self._map, dim=1)
        return self._scale * cosine + self._shift

    def score(self, left: F32, right: F32) -> F64:
        """See `MatchingHead.score`."""
        with torch.inference_mode():
            logits = self._logits(torch.from_numpy(left.copy()), torch.from_numpy(right.copy()))
            return np.asarray(torch.sigmoid(logits).numpy(), np.float64)


def fit_extractor(
    responses: Sequence[OpenedResponse],
    vectors: Sequence[Vectors],
    vocabulary: int,
    seed: int,
    head: type[PerceptronHead | CosineHead] = PerceptronHead,
) -> Extractor:
    """Heads and lexicon of honest responses.

    A's mismatched pairs join a block's tokens with another block's text; B's, a block with another response's
    answer.

    Raises:
        OptionError: fewer than two responses, or the `content` extra is not installed.
    """
    require_scikit_learn()
    if len(responses) < 2:
        raise OptionError("matching heads need at least two honest responses")
    tokens = np.concatenate([v.tokens for v in vectors])
    blocks = np.concatenate([v.blocks for v in vectors])
    answers = np.concatenate([np.repeat(v.answer[None, :], len(v.blocks), axis=0) for v in vectors])
    owners = [i for i, v in enumerate(vectors) for _ in v.blocks]
    return Extractor(
        head(*mixed_up(tokens, blocks, range(len(blocks)), seed), seed),
        head(*mixed_up(blocks, answers, owners, seed + 1), seed),
        Lexicon(responses, vocabulary),
    )
