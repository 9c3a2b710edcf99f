"""Byte-level probabilities: symbols add up to 1, covers are those of a brute-force search, one pass and a little."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from tokenizers import models, trainers

from auditor.errors import CannotScoreError, ContextLengthError, ModelUnsupportedError, TraceFieldError
from auditor.reference.byte_level import byte_law, canonical, everything
from auditor.reference.canonical_pairs import CanonicalPairs
from auditor.reference.demo.prompts import TARGET
from auditor.reference.model import Model
from auditor.reference.prefix_rows import PrefixRows
from auditor.reference.sampling import SamplingSpec
from auditor.reference.token_bytes import TokenBytes
from auditor.reference.tokenizer import Tokenizer

END = 0
ALPHABET = (b"a", b"b", b"\xc3", b"\xa9")


class TinyModel:
    """A model of small vocabularies whose every row is random, and depends on the whole context."""

    def __init__(self, size, seed):
        self.size, self.seed, self.asked = size, seed, []

    def row(self, context):
        generator = np.random.default_rng([self.seed, *context, len(context)])
        logits = generator.normal(size=self.size) * 2.0
        return logits - logsumexp(logits)

    def __call__(self, contexts):
        self.asked.extend(contexts)
        return ((c, self.row(c)) for c in contexts)


def by_brute_force(data, vocabulary, model, follow):
    """P(data): every token sequence whose text begins with it, found by trying every token at every step."""

    def mass(context, spelled):
        if len(spelled) >= len(data):
            return 1.0 if spelled.startswith(data) else 0.0
        if not data.startswith(spelled):
            return 0.0
        p = np.exp(model.row(context))
        p[follow(context[-1] if context else None).ids] = 0.0
        p /= p.sum()
        return sum(
            p[t] * mass((*context, t), spelled + b) for t, b in enumerate(vocabulary.spelled) if b is not None
        )

    return mass((), b"")


@st.composite
def vocabularies(draw):
    """Single bytes and the results of random merges, each of pieces that exist."""
    pieces = [None, *ALPHABET]
    merges = []
    for _ in range(draw(st.integers(0, 5))):
        left, right = draw(st.integers(1, len(pieces) - 1)), draw(st.integers(1, len(pieces) - 1))
        whole = pieces[left] + pieces[right]
        if whole not in pieces and len(whole) <= 4:
            merges.append((left, right, len(pieces)))
            pieces.append(whole)
    return TokenBytes(tuple(pieces), (END,)), CanonicalPairs.of_merges(merges, len(pieces))


texts = st.lists(st.sampled_from(ALPHABET), max_size=5).map(b"".join)


@settings(max_examples=60)
@given(vocabularies(), texts, st.integers(0, 99), st.booleans())
def test_covers_agree_with_brute_force_and_symbols_add_up_to_one(made, data, seed, only_canonical):
    vocabulary, pairs = made
    follow = canonical(pairs) if only_canonical else everything
    model = TinyModel(vocabulary.size, seed)
    law = byte_law(data, vocabulary, model, follow)
    assert math.exp(law.log_probability) == pytest.approx(
        by_brute_force(data, vocabulary, model, follow), rel=1e-9
    )
    for byte in (b"a", b"b", b"\xa9"):
        longer = by_brute_force(data + byte, vocabulary, model, follow)
        assert np.exp(law.log_probability + law.next_bytes[byte[0]]) == pytest.approx(longer, rel=1e-9)
    assert law.total == pytest.approx(1.0, abs=1e-9)
    assert len(model.asked) == len(set(model.asked)), "each context once"


def test_bytes_that_no_token_spells_are_refused():
    vocabulary = TokenBytes((None, b"a"), (END,))
    with pytest.raises(CannotScoreError, match="no sequence"):
        byte_law(b"ab", vocabulary, TinyModel(2, 0), everything)


def test_plain_sampling_of_a_long_text_is_refused_before_it_explodes():
    vocabulary = TokenBytes((None, b"a", b"aa", b"aaa"), (END,))
    with pytest.raises(CannotScoreError, match="tokenizations"):
        byte_law(b"a" * 60, vocabulary, TinyModel(4, 0), everything)


@pytest.fixture(scope="module")
def byte_pairs():
    """A trained byte-pair tokenizer without pre-tokenizer, and its merges as ids."""
    backend = tokenizers.Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=120, show_progress=False)
    lines = ["abracadabra banana cabana", "aab abb aaa bbb aaaa", "a cab, a band; ban a bar"] * 4
    backend.train_from_iterator(lines, trainer)
    import json

    model = json.loads(backend.to_str())["model"]
    vocabulary = model["vocab"]
    pairs = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
    merges = [(vocabulary[a], vocabulary[b], vocabulary[a + b]) for a, b in pairs]
    return backend, CanonicalPairs.of_merges(merges, len(vocabulary))


def test_pairs_are_canonical_exactly_where_the_library_says(byte_pairs):
    backend, pairs = byte_pairs
    size = backend.get_vocab_size()
    text = {i: backend.id_to_token(i) for i in range(size)}
    for a in range(size):
        for b in range(size):
            assert pairs.allows(a, b) == (backend.encode(text[a] + text[b]).ids == [a, b]), (text[a], text[b])


@given(st.lists(st.sampled_from("abcndr "), min_size=1, max_size=30).map("".join))
def test_canonical_encodings_hold_no_refused_pair(byte_pairs, text):
    backend, pairs = byte_pairs
    assert pairs.refused(backend.encode(text).ids) == []


@given(st.data())
def test_sequences_without_refused_pairs_are_canonical(byte_pairs, data):
    backend, pairs = byte_pairs
    ids = data.draw(st.lists(st.integers(0, backend.get_vocab_size() - 1), min_size=1, max_size=8))
    text = "".join(backend.id_to_token(i) for i in ids)
    assert (pairs.refused(ids) == []) == (backend.encode(text).ids == ids)


@pytest.fixture(scope="module")
def demo():
    tokenizer = Tokenizer.load(TARGET)
    model = Model.load(TARGET)
    return tokenizer, model, TokenBytes.of(tokenizer, model.config.vocab_size)


PROMPT = (1, 4, 1022, 274, 1596, 330, 227, 28, 25, 312, 227, 31, 31, 20, 5)
TEXT = " Read the question once more.\nNext, 63 divided by 99 is 0 with remainder 63.\nThen, 99 divi"


@pytest.mark.parametrize("cut", [0, 1, 7, 29, 30, 46, 80, 90])
def test_on_the_demo_model_symbols_add_up_to_one_for_little_more_than_a_pass(demo, cut):
    tokenizer, model, vocabulary = demo
    rows = PrefixRows(model, PROMPT)
    law = byte_law(TEXT[:cut].encode(), vocabulary, rows, canonical(CanonicalPairs.of(tokenizer)))
    assert abs(law.total - 1.0) < 1e-9
    assert rows.computed <= 1.5 * (len(PROMPT) + len(tokenizer.encode(TEXT[:cut])))


def test_on_the_demo_model_a_byte_more_is_a_factor(demo):
    """P(xb) read as a next byte is P(xb) summed anew: other covers, other contexts."""
    tokenizer, model, vocabulary = demo
    follow = canonical(CanonicalPairs.of(tokenizer))
    data = TEXT[:40].encode()
    previous = byte_law(b"", vocabulary, PrefixRows(model, PROMPT), follow)
    for n in range(1, len(data)):
        law = byte_law(data[:n], vocabulary, PrefixRows(model, PROMPT), follow)
        step = previous.log_probability + previous.next_bytes[data[n - 1]]
        # The model's float32 products depend on nothing else, so what is left is float64 sums.
        assert law.log_probability == pytest.approx(step, abs=1e-9)
        previous = law


def test_demo_tokens_spell_their_text(demo):
    tokenizer, _, vocabulary = demo
    text = "Zoë said: 12 × 3 = 36 — 好\n\tdone"
    assert vocabulary.join(tokenizer.encode(text)) == text.encode()
    assert vocabulary.special_ids == tuple(range(7))


def test_rows_are_the_models_own_and_the_sampler_cuts_them(demo):
    tokenizer, model, _ = demo
    import torch

    from auditor.reference.noise import noise_scheme

    ids = tuple(tokenizer.encode(TEXT))
    other = (*ids[:5], ids[9], ids[3])
    plain = dict(PrefixRows(model, PROMPT)([ids, ids[:4], other, other[:6]]))
    for context, row in plain.items():
        logits = model.logits(model.prefill([torch.tensor([*PROMPT, *context])])[-1:])[0]
        assert np.array_equal(row, torch.log_softmax(logits.double(), dim=0).numpy())
    cut = PrefixRows(model, PROMPT, SamplingSpec(temperature=0.5, top_k=3), noise_scheme("gumbel-pos-v1"))
    ((_, law),) = cut([ids])
    kept = np.argsort(-plain[ids])[:3]
    assert set(np.flatnonzero(np.isfinite(law))) == set(kept)
    assert np.exp(law[kept]) == pytest.approx(
        np.exp(2 * plain[ids][kept]) / np.exp(2 * plain[ids][kept]).sum()
    )


def test_unusable_prompts_and_tokenizers_are_refused(demo, tmp_path):
    _, model, _ = demo
    with pytest.raises(TraceFieldError):
        PrefixRows(model, ())
    with pytest.raises(ContextLengthError):
        list(PrefixRows(model, (1,) * 512)([(1,)]))
    backend = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text("{}")
    other = Tokenizer.load(tmp_path)
    with pytest.raises(ModelUnsupportedError):
        TokenBytes.of(other)
    with pytest.raises(ModelUnsupportedError):
        CanonicalPairs.of(other)
