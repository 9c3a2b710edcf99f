"""Attacks around the commitment, played with real keys, heads, challenges and openings."""

from __future__ import annotations

from auditor.errors import AuditError
from auditor.hidden_tokens.checking import check_commitment, check_opened
from auditor.hidden_tokens.embedders import HashingEmbedder, quantised
from auditor.hidden_tokens.wire import Commitment, SentHead
from auditor.merkle.keys import Algorithm, SeedSigner
from auditor.merkle.token_leaves import Salts
from auditor.merkle.token_openings import draw_challenge, open_blocks
from auditor.merkle.token_stream import Declared, TokenStream
from auditor.reference.checkpoint.digests import tokenizer_digest
from auditor.reference.demo.prompts import TARGET
from auditor.reference.deviations.accounting import INFLATIONS
from auditor.reference.sampling import SamplingSpec
from auditor.trace import Trace, Usage
from tests.proofs.inflation_pool import BLOCK, inflated

SIGNER = SeedSigner("provider.example/tokens", Algorithm.ED25519, b"\x07" * 32)
DIGEST = tokenizer_digest(TARGET)
EMBEDDER = HashingEmbedder()


class Provider:
    """Serves one response, honestly or not; the client notes when heads come."""

    def __init__(self, response, hidden, tokenizer, *, billed=None, honest_text=None, late=False):
        self.response, self.hidden, self.tokenizer = response, hidden, tokenizer
        self._honest_text, self._blocks = honest_text, 0
        turn = iter(range(1 << 30))
        self.stream = TokenStream(
            Declared(f"req-{response.seed:x}", DIGEST, DIGEST, EMBEDDER.digest, BLOCK),
            Salts(b"k" * 32, f"req-{response.seed:x}"),
            SIGNER,
            lambda: 1_700_000_000 + next(turn),
            self._fingerprint,
        )
        for token in hidden:
            self.stream.add(token)
        self.stream.answer()
        self.stream.finish(len(response.visible))
        # The client's clock: heads come as they are signed, or all of them only after the answer.
        times = [f"2026-11-28T12:00:{i:02d}+00:00" for i in range(len(self.stream.heads))]
        began = f"2026-11-28T12:00:{len(times):02d}+00:00"
        if late:
            times, began = [f"2026-11-28T12:01:{i:02d}+00:00" for i in range(len(times))], times[0]
        heads = tuple(SentHead(h.decode(), t) for h, t in zip(self.stream.heads, times, strict=True))
        commitment = Commitment(heads, tuple(tuple(p) for p in self.stream.proofs))
        count = len(hidden) if billed is None else billed
        self.trace = Trace(
            f"req-{response.seed:x}",
            "demo",
            response.prompt,
            response.visible,
            SamplingSpec(),
            model_digest=DIGEST,
            tokenizer_digest=DIGEST,
            usage=Usage(len(response.prompt), count + len(response.visible), count),
            timing={"received": "2026-11-28T11:59:00+00:00", "first_token": began, "finished": None},
            commitment=commitment.to_json(f"req-{response.seed:x}"),
        )

    def _fingerprint(self, block):
        text = self.tokenizer.decode(list(block))
        self._blocks += 1
        if self._honest_text is not None and self._blocks * BLOCK > len(self.response.hidden):
            text = self._honest_text  # what it likes to show for filler
        return quantised(EMBEDDER.embed([text])[0])

    def open(self, head, challenge):
        return open_blocks(self.stream.tree.node, self.stream.leaves, head, challenge)


def audit(provider, nonce):
    """Error code of the first check that fails, None where all hold."""
    try:
        committed = check_commitment(provider.trace, [SIGNER.public])
        challenge = draw_challenge(committed.head, nonce, 1 << 20)
        opening = provider.open(committed.head, challenge)
        check_opened(
            committed,
            challenge,
            opening,
            provider.tokenizer,
            EMBEDDER,
            tokenizer_digest=DIGEST,
            vocabulary=provider.tokenizer.vocab_size,
        )
    except AuditError as problem:
        return problem.code
    return None


def play(attack, rate, response, others, tokenizer):
    hidden = inflated(attack, rate, response, others, tokenizer)
    text = tokenizer.decode(list(response.hidden))
    return Provider(
        response,
        hidden,
        tokenizer,
        billed=len(hidden) + max(1, round(rate * len(hidden))) if attack.counts_only else None,
        honest_text=text if attack.forges_embeddings else None,
        late=attack.late,
    )


def structural(pool, names, tokenizer, rates=(0.1, 0.5, 1.0, 2.0)):
    """How many of each attack's responses are refused, rate by rate; and how many honest ones."""
    honest = sum(audit(Provider(r, r.hidden, tokenizer), b"n") is not None for r in pool)
    found = {}
    for name in names:
        codes = {
            rate: [audit(play(INFLATIONS[name], rate, r, pool, tokenizer), b"n") for r in pool]
            for rate in rates
        }
        found[name] = {
            "refused": {f"{rate}": [sum(c is not None for c in cs), len(cs)] for rate, cs in codes.items()},
            "codes": sorted({code for cs in codes.values() for code in cs if code}),
            "honest_refused": honest,
        }
    return found
