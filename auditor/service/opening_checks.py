"""Openings held to what was signed and asked, by `check_opened` as in `audit check`.

An opening that does not answer the challenge, or does not lead to the signed root, is an error: somebody
mixed up files, and may try again. One that does, and whose content contradicts what was signed with it, is a
finding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from auditor.commitment_errors import (
    ChallengeMismatchError,
    EmbeddingForgedError,
)
from auditor.errors import TokenOutOfRangeError
from auditor.hidden_tokens.checking import check_opened
from auditor.hidden_tokens.embedders import Embedder, HashingEmbedder
from auditor.reference.checkpoint.digests import tokenizer_digest
from auditor.reference.tokenizer import Tokenizer
from auditor.service.errors import TokenizerAbsentError

if TYPE_CHECKING:
    from pathlib import Path

    from auditor.hidden_tokens.checking import Committed
    from auditor.merkle.token_heads import TokenHead
    from auditor.merkle.token_openings import Challenge, Opening


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a challenge ended.

    Attributes:
        found: of one that held: tokens seen and hidden, blocks, tokens beyond the canonical tokenization.
        error: of another: code and detail.
    """

    state: str
    found: dict[str, Any] | None = None
    error: dict[str, str] | None = None


def _light_embedders() -> dict[str, Embedder | None]:
    return {"none": None, HashingEmbedder.digest: HashingEmbedder()}


@dataclass(frozen=True, slots=True)
class OpeningChecker:
    """What it takes to check openings: tokenizers and embedders by their digests.

    The sentence encoder is none of them: its weights do not belong into a process that answers requests.
    """

    tokenizers: Mapping[str, Tokenizer] = field(default_factory=dict)
    embedders: Mapping[str, Embedder | None] = field(default_factory=_light_embedders)

    @classmethod
    def of_model(cls, directory: Path) -> OpeningChecker:
        """With the tokenizer of a model's folder; its weights are not read.

        Raises:
            ModelNotFoundError, ModelCorruptError, ModelUnsafeError: there is none that can be used.
        """
        return cls({tokenizer_digest(directory): Tokenizer.load(directory)})

    def prepare(self, head: TokenHead) -> tuple[Tokenizer, Embedder | None]:
        """What openings of a head are checked with.

        Raises:
            TokenizerAbsentError: the service does not have it, so nothing may be asked of the provider.
        """
        if head.tokenizer not in self.tokenizers:
            raise TokenizerAbsentError("this service has no such tokenizer", fix="audit serve --model DIR")
        if head.embedder not in self.embedders:
            raise TokenizerAbsentError(
                "this service has no such embedder", fix="audit commit --embedder hashing"
            )
        return self.tokenizers[head.tokenizer], self.embedders[head.embedder]

    def check(self, committed: Committed, challenge: Challenge, request: str, opening: Opening) -> Outcome:
        """How an opening ends its challenge.

        Args:
            request: the response that the opening says it is of.

        Raises:
            TokenizerAbsentError: see `prepare`.
            ChallengeMismatchError: it is of another response. Otherwise as `check_opening`.
        """
        tokenizer, embedder = self.prepare(committed.head)
        if request != committed.head.request:
            raise ChallengeMismatchError("the opening is of another response")
        try:
            found = check_opened(
                committed,
                challenge,
                opening,
                tokenizer,
                embedder,
                tokenizer_digest=committed.head.tokenizer,
                vocabulary=tokenizer.vocab_size,
            )
        except (EmbeddingForgedError, TokenOutOfRangeError) as error:
            return Outcome("failed", error={"code": error.code, "detail": error.message})
        said = {
            "seen": found.exposure.seen,
            "hidden": found.exposure.hidden,
            "blocks": sorted(found.blocks),
            "canonical_excess": found.excess,
        }
        return Outcome("held", found=said)
