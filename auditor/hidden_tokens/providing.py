"""The provider's side: commit to a response's hidden tokens, and open what is challenged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from auditor.commitment_errors import CommitmentFieldError, ExposureError, SessionKeyError
from auditor.hidden_tokens.embedders import Embedder, quantised
from auditor.hidden_tokens.wire import Commitment, Kept, SentHead
from auditor.merkle.keys import Signer
from auditor.merkle.token_heads import TokenHead, parse_head_text
from auditor.merkle.token_leaves import Salts, TokenLeaf
from auditor.merkle.token_openings import Challenge, Opening, exposure, open_blocks
from auditor.merkle.token_stream import Declared, Fingerprint, TokenStream, block_leaves, no_fingerprint
from auditor.merkle.tree import Tree
from auditor.reference.tokenizer import Tokenizer
from auditor.trace import Trace

DEFAULT_BLOCK = 16


def block_fingerprint(embedder: Embedder | None, tokenizer: Tokenizer) -> Fingerprint:
    """Int8 embedding of a block's text."""
    if embedder is None:
        return no_fingerprint

    def of(block: Sequence[int]) -> bytes:
        return quantised(embedder.embed([tokenizer.decode(list(block))])[0])

    return of


def commit(
    trace: Trace,
    tokenizer: Tokenizer,
    *,
    session_key: bytes,
    signer: Signer,
    clock: Callable[[], int],
    embedder: Embedder | None,
    block: int = DEFAULT_BLOCK,
    head_blocks: int = 4,
) -> tuple[Trace, Kept]:
    """Split a full trace into what the client gets and what the provider keeps.

    The first `usage.reasoning_tokens` output tokens are hidden. The client's trace has the visible tokens,
    the same bill, and the heads as they were streamed.

    Raises:
        CommitmentFieldError: no hidden or no visible tokens, digests that are not declared, or fields that
            would show hidden tokens (log-probabilities, drafts, activation fingerprints).
    """
    output, hidden = trace.output_token_ids or (), trace.usage.reasoning_tokens or 0
    _check_committable(trace, hidden, len(output))
    stream = TokenStream(
        Declared(
            trace.id,
            trace.model_digest or "",
            trace.tokenizer_digest or "",
            "none" if embedder is None else embedder.digest,
            block,
        ),
        Salts(session_key, trace.id),
        signer,
        clock,
        block_fingerprint(embedder, tokenizer),
        head_blocks=head_blocks,
    )
    for token in output[:hidden]:
        stream.add(token)
    stream.answer()
    stream.finish(len(output) - hidden)
    heads = [note.decode() for note in stream.heads]
    commitment = Commitment(tuple(map(SentHead, heads)), tuple(tuple(proof) for proof in stream.proofs))
    visible = output[hidden:]
    ended = trace.finish_reason == "stop" and visible[-1] in tokenizer.eos_ids
    shown = replace(
        trace,
        output_token_ids=visible,
        text=tokenizer.decode(list(visible[:-1] if ended else visible)),
        commitment=commitment.to_json(trace.id),
    )
    return shown, Kept(trace.id, heads[-1], output[:hidden])


def _check_committable(trace: Trace, hidden: int, tokens: int) -> None:
    where = trace.where
    if not 0 < hidden < tokens:
        raise CommitmentFieldError(
            f"{hidden} reasoning tokens of {tokens} output tokens: nothing hidden, or nothing visible",
            where=where,
            fix="usage.reasoning_tokens says how many of the first output tokens are hidden",
        )
    if trace.commitment is not None:
        raise CommitmentFieldError("is committed already", where=where)
    if trace.model_digest is None or trace.tokenizer_digest is None:
        raise CommitmentFieldError("declares no digest of model or tokenizer", where=where)
    drafts = trace.speculation.draft_token_ids is not None
    for name, there in (
        ("logprobs", trace.logprobs),
        ("fingerprints", trace.fingerprints),
        ("drafts", drafts),
    ):
        if there:
            raise CommitmentFieldError(
                f"field {name} would show hidden tokens", where=where, fix="leave it out"
            )


def head_text(note: str) -> str:
    """The signed text of a note: all before its empty line."""
    return note.partition("\n\n")[0] + "\n"


def open_challenge(
    kept: Kept,
    challenge: Challenge,
    tokenizer: Tokenizer,
    *,
    session_key: bytes,
    embedder: Embedder | None,
    max_share: float = 1.0,
) -> tuple[Opening, Kept]:
    """Answer a challenge, and note what has been opened.

    Args:
        max_share: the largest share of this response's hidden tokens that all openings together may show.

    Raises:
        ChallengeMismatchError, LeafIndexError, TreeSizeError: the challenge is not one of this head.
        ExposureError: more would be seen than `max_share`.
        SessionKeyError: another session key, embedder or record than the head was made with.
    """
    head = parse_head_text(head_text(kept.head))
    leaves = _leaves(kept, head, tokenizer, session_key, embedder)
    tree = Tree(b"".join(leaf.hash() for leaf in leaves))
    if tree.size != head.hidden or tree.root() != head.root:
        raise SessionKeyError(
            "session key, embedder and kept tokens do not lead to the signed root", where=kept.request
        )
    opening = open_blocks(tree.node, leaves, head, challenge)
    would_show = exposure(head, {*kept.opened, *challenge.blocks})
    if would_show.share > max_share:
        raise ExposureError(
            f"{would_show.seen} of {head.hidden} hidden tokens would be shown, over {max_share:.0%}",
            where=kept.request,
        )
    return opening, kept.having_opened(challenge.blocks)


def _leaves(
    kept: Kept, head: TokenHead, tokenizer: Tokenizer, session_key: bytes, embedder: Embedder | None
) -> list[TokenLeaf]:
    salts, fingerprint = Salts(session_key, kept.request), block_fingerprint(embedder, tokenizer)
    return [
        leaf
        for first in range(0, len(kept.tokens), head.block)
        for leaf in block_leaves(
            kept.request, first, kept.tokens[first : first + head.block], salts, fingerprint
        )
    ]
