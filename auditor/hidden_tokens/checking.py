"""The auditor's side: what a commitment and its opening are held to, step by step.

1. Some trusted key signed every head.
2. The heads are one chain that ends in a final one.
3. They are of this response, model and tokenizer.
4. The bill is the signed one.
5. All hidden tokens were committed to before the first visible one: by the order of the heads, and by the
   client's clock where it noted when they came.
6. The opening answers this very challenge, whole.
7. Every opened block's embedding is recomputed from its text.
8. What is left to judge is the text itself: `features.py` and, with weights, `reexecution.py`.

Steps 1 to 7 know no error rate: an honest provider passes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from auditor.commitment_errors import (
    CommittedLateError,
    CountMismatchError,
    EmbeddingForgedError,
    HeadSwappedError,
    OpeningIncompleteError,
    OpeningSyntaxError,
)
from auditor.errors import CannotScoreError, TokenOutOfRangeError
from auditor.hidden_tokens.embedders import Embedder, same_embedding
from auditor.hidden_tokens.wire import Commitment, SentHead, commitment_from_json
from auditor.merkle.keys import PublicKey
from auditor.merkle.token_heads import TokenHead, check_chain, open_head
from auditor.merkle.token_openings import Challenge, Exposure, Opening, check_opening
from auditor.reference.tokenizer import Tokenizer
from auditor.trace import Trace


@dataclass(frozen=True, slots=True)
class Committed:
    """A commitment that passed steps 1 to 5.

    Attributes:
        head: the final head.
        timed: whether the client's clock, and not only the order of heads, shows step 5.
    """

    commitment: Commitment
    head: TokenHead
    timed: bool


@dataclass(frozen=True, slots=True)
class Opened:
    """An opening that passed steps 6 and 7.

    Attributes:
        blocks: opened block number -> token ids.
        texts: opened block number -> text.
        excess: tokens beyond those of the canonical tokenization of each run of neighbouring blocks, summed.
            Honest sampling makes some; it is evidence, not proof.
        prefix: hidden tokens opened without a gap from the first on.
    """

    head: TokenHead
    exposure: Exposure
    blocks: dict[int, tuple[int, ...]]
    texts: dict[int, str]
    excess: int
    prefix: tuple[int, ...]

    @property
    def complete(self) -> bool:
        """Whether all hidden tokens were opened."""
        return len(self.prefix) == self.head.hidden


def check_commitment(trace: Trace, keys: Iterable[PublicKey]) -> Committed:
    """Steps 1 to 5.

    Raises:
        OpeningSyntaxError, NoteSyntaxError, CommitmentHeadError: not of the format.
        KeyUnknownError, SignatureInvalidError: step 1.
        HeadChainError, ProofLengthError, ProofRootError, TreeSizeError: step 2.
        HeadSwappedError: step 3. CountMismatchError: step 4. CommittedLateError: step 5.
    """
    commitment = commitment_from_json(trace.commitment, trace.id, trace.where)
    trusted = tuple(keys)
    heads = [open_head(sent.note.encode(), trusted, trace.where) for sent in commitment.heads]
    final = check_chain(heads, commitment.proofs)
    if final.request != trace.id:
        raise HeadSwappedError(f"the heads are of response {final.request}", where=trace.where)
    for name, ours, theirs in (
        ("model", trace.model_digest, final.model),
        ("tokenizer", trace.tokenizer_digest, final.tokenizer),
    ):
        if ours is not None and ours != theirs:
            raise HeadSwappedError(f"the heads declare another {name} than the trace", where=trace.where)
    _check_bill(trace, final)
    return Committed(commitment, final, _committed_in_time(trace, heads, commitment.heads))


def _check_bill(trace: Trace, head: TokenHead) -> None:
    usage, visible = trace.usage, len(trace.output_token_ids or ())
    for name, billed, signed in (
        ("reasoning tokens", usage.reasoning_tokens, head.hidden),
        ("completion tokens", usage.completion_tokens, head.hidden + head.visible),
        ("visible tokens", visible, head.visible),
    ):
        if billed != signed:
            said = f"{billed} {name} in the log" if billed is not None else f"no {name} in the log"
            raise CountMismatchError(
                f"{said}, {signed} signed",
                # A log that shows hidden tokens, too, is no bill.
                billed=None if name == "visible tokens" else billed,
                signed=signed,
                where=trace.where,
            )


def _committed_in_time(trace: Trace, heads: Sequence[TokenHead], sent: Sequence[SentHead]) -> bool:
    """Step 5; whether a clock shows it."""
    first = next(
        (i for i, head in enumerate(heads) if head.visible == 0 and head.hidden == heads[-1].hidden), None
    )
    if first is None:
        said = "no head covers all hidden tokens before the answer"
        raise CommittedLateError(said, by_clock=False, where=trace.where)
    received, began = sent[first].received, (trace.timing or {}).get("first_token")
    if received is None or began is None:
        return False
    if moment(received, trace.where) > moment(began, trace.where):
        raise CommittedLateError(
            f"the hidden tokens' head came at {received}, the first visible token at {began}",
            by_clock=True,
            where=trace.where,
        )
    return True


def moment(text: object, where: str) -> datetime:
    """A time with its zone, ISO 8601.

    Raises:
        OpeningSyntaxError: none.
    """
    try:
        found = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise OpeningSyntaxError(f"{str(text)[:40]!r} is no time with its zone", where=where)
    return found


def check_opened(
    committed: Committed,
    challenge: Challenge,
    opening: Opening | None,
    tokenizer: Tokenizer,
    embedder: Embedder | None,
    *,
    tokenizer_digest: str,
    vocabulary: int,
) -> Opened:
    """Steps 6 and 7.

    Args:
        opening: None where the provider gave none.
        tokenizer_digest: of the auditor's tokenizer; with another one honest embeddings would look forged.
        embedder: the one that the head names.
        vocabulary: ids that the model has.

    Raises:
        CannotScoreError: the head declares another tokenizer than the auditor's.
        OpeningIncompleteError: withheld, wholly or in part. Otherwise step 6 as `check_opening`.
        TokenOutOfRangeError: an opened id is none of the model's.
        EmbeddingForgedError: step 7.
    """
    head = committed.head
    if opening is None:
        raise OpeningIncompleteError("the challenge was not answered", where=head.request)
    if tokenizer_digest != head.tokenizer:
        raise CannotScoreError(
            f"the tokens are of tokenizer {head.tokenizer[:18]}..., at hand is {tokenizer_digest[:18]}...",
            where=head.request,
            fix="is this the right --model?",
        )
    seen = check_opening(opening, head, challenge, vocabulary=vocabulary)
    blocks = {
        block: tuple(opening.leaves[index].token_id for index in head.block_range(block))
        for block in challenge.blocks
    }
    worst = max(max(ids) for ids in blocks.values())
    if worst >= vocabulary:
        raise TokenOutOfRangeError(
            f"opened token id {worst} of a vocabulary of {vocabulary}", where=head.request
        )
    texts = {block: tokenizer.decode(list(ids)) for block, ids in blocks.items()}
    _check_embeddings(opening, head, texts, embedder)
    runs = _runs(blocks)
    excess = sum(canonical_excess(run, tokenizer) for _, run in runs)
    prefix = runs[0][1] if runs[0][0] == 0 else ()
    return Opened(head, seen, blocks, texts, excess, prefix)


def _check_embeddings(
    opening: Opening, head: TokenHead, texts: dict[int, str], embedder: Embedder | None
) -> None:
    vectors = None if embedder is None else embedder.embed(list(texts.values()))
    for row, block in enumerate(texts):
        first, *rest = (opening.leaves[index].fingerprint for index in head.block_range(block))
        fits = not first if vectors is None else same_embedding(first, vectors[row])
        if not fits or any(rest):
            raise EmbeddingForgedError(
                f"the embedding of block {block} is not of its text", where=head.request
            )


def _runs(blocks: dict[int, tuple[int, ...]]) -> list[tuple[int, tuple[int, ...]]]:
    """Neighbouring blocks joined: (first block, token ids)."""
    runs: list[tuple[int, tuple[int, ...]]] = []
    last = -2
    for block, ids in sorted(blocks.items()):
        if block == last + 1:
            runs[-1] = (runs[-1][0], runs[-1][1] + ids)
        else:
            runs.append((block, ids))
        last = block
    return runs


def canonical_excess(ids: Sequence[int], tokenizer: Tokenizer) -> int:
    """Tokens beyond those that the tokenizer makes of the same text.

    0 where the text is not whole (a character cut at an end), for then it cannot be made again. A part of a
    canonical sequence is canonical (arXiv 2506.06446) but for pre-tokenizer boundaries at its ends.
    """
    text = tokenizer.decode(list(ids))
    return 0 if "\ufffd" in text else max(0, len(ids) - len(tokenizer.encode(text)))
