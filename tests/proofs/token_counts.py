"""Token counts from texts: `python tests/proofs/token_counts.py [--responses N]`, figures of docs/token_counts.md.

1. The sequential test of bills. Fresh responses of the demo provider, ids thrown away; sequences of 100 responses are
   drawn from them with replacement. Honest: how many sequences ever reach 1/alpha? Inflated by k tokens a response
   (on top of the honest bill; in every response, or in a tenth): how many responses until they do?
2. Bills beside honest ones of other seeds (`audit tokens --honest`).
3. What an audit costs beside one forward pass.
4. Byte-level: largest distance of the symbols' sum from 1, and its cost, at random cuts of the same texts.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import numpy as np
import torch

CALIBRATION_SEED, REPORT_SEED = 81_001, 82_002
SEQUENCES, LENGTH = 1_000, 100
PUBLISHED = {1: 30.1, 2: 15.8, 3: 11.1}
BATCH = 32
ROUNDS = 3


def interval(hits, total):
    from scipy.stats import binomtest

    low, high = binomtest(int(hits), total).proportion_ci(0.95)
    return f"{int(hits)}/{total} (95 % {low:.4f} to {high:.4f})"


def counted(reference, provider, seed, count):
    """Text-only traces of fresh conversations, each with its count; those that cannot be counted are told."""
    from auditor.errors import CannotScoreError
    from auditor.generation import generate
    from auditor.reference.demo.prompts import demo_conversations
    from auditor.reference.deviations import HONEST
    from auditor.token_counts.response import count_response

    traces = generate(provider, demo_conversations(count, seed), deviation=HONEST, seed=seed)
    refused = 0
    for trace in traces:
        bare = replace(trace, output_token_ids=None, seed=None, noise=None)
        try:
            yield bare, count_response(bare, reference), len(trace.output_token_ids)
        except CannotScoreError:
            refused += 1
    print(f"seed {seed}: {refused} of {count} responses refused (replacement characters)", flush=True)


def sequences(responses, generator, extra=0, share=1.0):
    """Log wealth [SEQUENCES, LENGTH] of resampled sequences, `extra` tokens added to a share of the bills."""
    from auditor.token_counts.martingale import wealth

    rows = []
    for _ in range(SEQUENCES):
        picks = generator.integers(len(responses), size=LENGTH)
        padded = generator.random(LENGTH) < share
        drawn = [responses[i].counted for i in picks]
        rows.append(
            wealth([replace(r, billed=r.billed + extra * int(p)) for r, p in zip(drawn, padded, strict=True)])
        )
    return np.array(rows)


def martingale(responses):
    generator = np.random.default_rng(REPORT_SEED)
    worst = 0.0
    honest = sequences(responses, generator)
    for alpha in (0.05, 0.001):
        flags = int((honest.max(axis=1) >= -np.log(alpha)).sum())
        worst = max(worst, flags / SEQUENCES / alpha)
        print(f"honest sequences flagged at alpha {alpha}: {interval(flags, SEQUENCES)}")
    for share in (1.0, 0.1):
        for extra in (1, 2, 3):
            log_wealth = sequences(responses, generator, extra, share)
            for alpha in (0.05, 0.001):
                reached = log_wealth >= -np.log(alpha)
                caught = reached.any(axis=1)
                stops = reached[caught].argmax(axis=1) + 1
                beside = f"; published mean {PUBLISHED[extra]}" if (share, alpha) == (1.0, 0.05) else ""
                print(
                    f"+{extra} tokens in {share:.0%} of responses, alpha {alpha}: caught "
                    f"{interval(caught.sum(), SEQUENCES)} within {LENGTH} responses, mean "
                    f"{stops.mean() if len(stops) else float('nan'):.1f}, 95th percentile "
                    f"{np.percentile(stops, 95) if len(stops) else float('nan'):.0f}{beside}",
                    flush=True,
                )
    return worst


def beside_honest(tokenizer, calibration, report):
    """What `audit tokens --honest` makes of one response, and of sequences of them; honest ones of other seeds."""
    from auditor.token_counts.honest_bills import HonestBills

    bills = HonestBills(calibration, tokenizer)
    generator = np.random.default_rng(REPORT_SEED + 1)
    for extra in (0, 1, 2, 3):
        found = bills.judge(padded(report, extra), 0.001)
        ps = [r.p_value for r in found.responses if r.p_value is not None]
        over = sum(r.overbilled > 0 for r in found.responses if r.overbilled is not None)
        print(
            f"beside honest bills, +{extra} tokens: {interval(sum(p <= 0.01 for p in ps), len(ps))} responses at p <= "
            f"0.01, {over} overbilled for sure, {found.unmatched} unmatched, {len(found.refused)} refused"
        )
    condition, bound = max(bills.bounds.items(), key=lambda pair: len(pair[1].honest))
    print(f"sequences are of the largest condition: {condition}, {len(bound.honest)} honest responses")
    excess = report_excess(bills, report, condition)
    for n in (50, 100, 200):
        luck = [flags(bound.honest, excess, n, generator) for _ in range(SEQUENCES)]
        print(f"{n} honest bills, honest sequences flagged: {interval(sum(luck), SEQUENCES)} at alpha 0.05")
        for extra in (1, 2, 3):
            stops = [stop(bound.honest, excess + extra, n, generator) for _ in range(201)]
            print(f"  +{extra} tokens: {np.median(stops):.0f} responses (median) at alpha 0.001")


def padded(traces, extra):
    return [
        replace(t, usage=replace(t.usage, completion_tokens=t.usage.completion_tokens + extra))
        for t in traces
    ]


def report_excess(bills, traces, condition):
    judged = bills.judge(traces, 0.001).responses
    return np.array([r.excess for r in judged if r.condition == condition], float)


def drawn_test(honest, excess, n, alpha, generator):
    """Log e-values along a sequence, calibrated on n honest bills drawn anew: the calibration's luck is in it."""
    from auditor.hidden_tokens.decisions import ResponseTest

    test = ResponseTest(generator.choice(np.array(honest, float), size=n), alpha)
    return test.log_e_along(generator.choice(excess, size=LENGTH)) - np.log(2.0 / alpha)


def flags(honest, excess, n, generator):
    return bool((drawn_test(honest, excess, n, 0.05, generator) >= 0.0).any())


def stop(honest, excess, n, generator):
    reached = drawn_test(honest, excess, n, 0.001, generator) >= 0.0
    return reached.argmax() + 1 if reached.any() else np.inf


def cost(reference, traces, responses):
    """Positions forwarded, and processor time, beside a forward pass over prompt and canonical ids."""
    from auditor.preparation import prompt_ids
    from auditor.token_counts.response import count_response

    model = reference.model
    seconds = {"audit": 0.0, "pass": 0.0}
    for trace in traces[:60]:
        ids = torch.tensor([*prompt_ids(trace, reference), *reference.tokenizer.encode(trace.text)])
        for name, work in (
            ("audit", lambda t=trace: count_response(t, reference)),
            ("pass", lambda i=ids: model.logits(model.prefill([i]))),
        ):
            started = time.process_time()
            work()
            seconds[name] += time.process_time() - started
    forwarded = sum(r.computed for r in responses) / sum(r.one_pass for r in responses)
    most = max(r.computed / r.one_pass for r in responses)
    print(
        f"cost of a count: {forwarded:.3f} forward passes in positions ({most:.2f} at most), "
        f"{seconds['audit'] / seconds['pass']:.2f} in processor time"
    )


def byte_level(reference, traces):
    from auditor.preparation import prompt_ids
    from auditor.reference.byte_level import byte_law, canonical
    from auditor.reference.canonical_pairs import canonical_pairs
    from auditor.reference.prefix_rows import PrefixRows
    from auditor.token_counts.response import token_bytes

    generator = np.random.default_rng(REPORT_SEED)
    model, tokenizer = reference.model, reference.tokenizer
    vocabulary = token_bytes(tokenizer, model.config.vocab_size)
    follow = canonical(canonical_pairs(tokenizer))
    off, positions, passes, rounds = [], [], [], np.zeros((ROUNDS, 2))
    for trace in traces[:150]:
        body = trace.text.split("<|")[0].encode()
        whole = generator.random() < 0.5
        data = body if whole else body[: int(generator.integers(len(body) // 2, len(body) + 1))]
        prompt = tuple(prompt_ids(trace, reference))
        ids = torch.tensor([*prompt, *tokenizer.encode(data.decode(errors="ignore"))])
        for turn in range(ROUNDS):
            rows = PrefixRows(model, prompt)
            started = time.process_time()
            law = byte_law(data, vocabulary, rows, follow)
            between = time.process_time()
            model.logits(model.prefill([ids]))
            rounds[turn] += between - started, time.process_time() - between
        off.append(abs(law.total - 1.0))
        positions.append(rows.computed)
        passes.append(len(ids))
    ratio, times = np.array(positions) / np.array(passes), rounds[:, 0] / rounds[:, 1]
    print(
        f"byte-level, {len(off)} texts (half of them cut anywhere): |sum of symbols - 1| at most {max(off):.1e}; cost "
        f"{sum(positions) / sum(passes):.3f} passes in positions ({ratio.max():.2f} at most), in processor time "
        f"{np.median(times):.2f} ({times.min():.2f} to {times.max():.2f} over {ROUNDS} interleaved rounds)"
    )
    return max(off)


def main():
    from auditor.generation import Provider
    from auditor.reference.demo.prompts import TARGET
    from auditor.replay import Reference

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--responses", type=int, default=400, help="fresh responses for the report")
    count = parser.parse_args().responses
    reference = Reference.load(TARGET)
    provider = Provider.load(TARGET, dtype="bfloat16", batch_size=BATCH)
    made = list(counted(reference, provider, REPORT_SEED, count))
    traces, responses = [t for t, _, _ in made], [r for _, r, _ in made]
    longer = sum(r.counted.excess > 0 for r in responses)
    expected = float(np.mean([min(r.counted.expected, r.counted.ceiling) for r in responses]))
    print(
        f"{len(responses)} honest bfloat16 responses of {np.mean([n for _, _, n in made]):.0f} tokens on average against "
        f"the float32 reference: {longer} billed beyond the canonical number, "
        f"{np.mean([r.counted.excess for r in responses]):.4f} tokens a response, expected {expected:.4f}",
        flush=True,
    )
    worst = martingale(responses)
    calibration = [t for t, _, _ in counted(reference, provider, CALIBRATION_SEED, max(100, count // 2))]
    beside_honest(reference.tokenizer, calibration, traces)
    cost(reference, traces, responses)
    off = byte_level(reference, traces)
    raise SystemExit(0 if worst <= 1.0 and off <= 1e-9 else 1)


if __name__ == "__main__":
    main()
