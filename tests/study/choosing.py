"""Would choosing what is scored catch cheating sooner than scoring everything? Upper bounds, from the stored pools.

What a token can show is known before it is seen: its *slack* (the least logit movement that would change it) follows
from prefix and seed, and by the noise model no other function of the prefix, entropy among them, says more. A token's
worth is the divergence of a cheat's mismatch (noise of 0.36 logits, as int4 weights have) from honest noise at that
slack. Three choices are compared with taking what comes:

* *tokens*: of each request only the tokens that hold most of the worth are scored. Unbiased: the choice at
  a position looks at what came before it.
* *requests by prompt*: of twice as many requests the half whose kind of question (its first two words) had the most
  worth a token in the development pool. Unbiased: the prompt is all that is looked at.
* *requests*: of twice as many requests the half with the most worth a token. Not unbiased, for the worth of a
  request depends on the tokens it returned: an upper bound on any choice of requests, a draft model's entropy included.

Slack and entropy need the forward pass and the output matrix, so choosing tokens saves neither. Kinds of question are
those of the demo's prompts, chat and documentation, which real traffic need not have: `audit verify --budget` does
not use them. The columns count tokens scored and tokens computed; 99 of 100 logs convict, at alpha 0.01, one look; of
1,000 simulated logs a share of 0.99 has a standard error of 0.003, and sizes are whole requests.
"""

from __future__ import annotations

import math

import numpy as np

from tests.study.pools import Pool, conversations, load

CAUSES = ("weights/int4", "temperature/+0.1")
ALPHA, WANTED, AUDITS, MOST = 0.01, 0.99, 1_000, 40
SEED = 7_006
CHEAT, HONEST, GROSS = 0.36, 0.025, 1e-4
KEPT_WORTH = 0.99


def worth_by_bin():
    """Expected log-likelihood ratio of a token under the cheat, by slack bin, nats."""
    from auditor.noise_model import bin_centres

    with np.errstate(over="ignore"):
        cheat, honest = (1.0 / (1.0 + np.exp(bin_centres() / s)) for s in (CHEAT, HONEST))
    p, q = (GROSS + (1 - GROSS) * x for x in (cheat, honest))
    return p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))


def slacks(counts):
    """Tokens of a request by slack bin, whether they matched or not."""
    from auditor.noise_model import BINS

    found = np.zeros(BINS)
    for d, n in counts.matched.items():
        found[d] += n
    for (d, _), n in counts.missed.items():
        found[d] += n
    return found


def below(counts, highest):
    """A request of which only tokens with a slack bin up to `highest` are scored."""
    from auditor.noise_model import RequestCounts

    matched = {d: n for d, n in counts.matched.items() if d <= highest}
    missed = {(d, m): n for (d, m), n in counts.missed.items() if d <= highest}
    return RequestCounts(sum(matched.values()) + sum(missed.values()), matched, missed)


def power(grids, picks, calibration):
    """Share of logs that convict: `picks` [AUDITS, n] are indices of requests."""
    from auditor.evidence import margin_log_e

    audited = np.stack([grids[row].sum(axis=0) for row in picks])
    return float((margin_log_e(calibration, audited) >= -math.log(ALPHA)).mean())


def needed(grids, tokens, calibration, pick):
    """(requests, mean tokens) of the smallest log that convicts WANTED of the time."""
    for size in range(1, MOST + 1):
        picks = pick(size)
        if power(grids, picks, calibration) >= WANTED:
            return size, float(np.mean([tokens[row].sum() for row in picks]))
    return None, None


def kinds_of(pool):
    """First two words of each request's question."""
    questions = [c[-1]["content"] for c in conversations(pool)]
    items = load(pool)
    return [" ".join(questions[item.trace].split()[:2]) for item in items]


def kind_worth(cause, worth):
    """Worth a token of each kind of question, in the development pool."""
    pool = Pool("development", deviation=cause, requests=192)
    found = {}
    for kind, item in zip(kinds_of(pool), load(pool), strict=True):
        total = found.setdefault(kind, [0.0, 0])
        total[0] += float(slacks(item.counts) @ worth)
        total[1] += item.counts.tokens
    return {kind: total / tokens for kind, (total, tokens) in found.items()}


def run(cause):
    from auditor.evidence import Calibration
    from auditor.noise_model import log_likelihoods

    honest = [i.counts for i in load(Pool("calibration", requests=480))]
    pool = [i.counts for i in load(Pool("report", deviation=cause, requests=320))]
    development = np.sum([slacks(i.counts) for i in load(Pool("development", deviation=cause))], axis=0)
    worth = worth_by_bin()
    share = np.cumsum(development * worth) / (development * worth).sum()
    highest = int(np.searchsorted(share, KEPT_WORTH))
    length = np.array([c.tokens for c in pool], float)
    each = np.array([slacks(c) @ worth for c in pool]) / length
    generator = np.random.default_rng(SEED)

    def uniform(size):
        return generator.integers(len(pool), size=(AUDITS, size))

    def best_half(size):
        drawn = generator.integers(len(pool), size=(AUDITS, 2 * size))
        order = np.argsort(-each[drawn], axis=1)[:, :size]
        return np.take_along_axis(drawn, order, axis=1)

    kinds = kind_worth(cause, worth)
    usual = float(np.mean(list(kinds.values())))
    promise = np.array(
        [kinds.get(kind, usual) for kind in kinds_of(Pool("report", deviation=cause, requests=320))]
    )

    def promising_half(size):
        drawn = generator.integers(len(pool), size=(AUDITS, 2 * size))
        # Kinds are few: among equals chance decides.
        order = np.argsort(-promise[drawn] - 1e-12 * generator.random(drawn.shape), axis=1)[:, :size]
        return np.take_along_axis(drawn, order, axis=1)

    whole = Calibration.of(honest)
    grids = log_likelihoods(pool)
    few = [below(c, highest) for c in pool]
    rows = {}
    rows["everything"] = needed(grids, length, whole, uniform)
    size, _ = needed(log_likelihoods(few), length, Calibration.of(below(c, highest) for c in honest), uniform)
    scored = np.array([c.tokens for c in few], float)
    rows["tokens"] = (size, None if size is None else size * float(length.mean()))
    rows["requests by prompt"] = needed(grids, length, whole, promising_half)
    rows["requests"] = needed(grids, length, whole, best_half)
    return {
        "cause": cause,
        "scored_share": float(scored.sum() / length.sum()),
        "needed": {name: {"requests": n, "computed": t} for name, (n, t) in rows.items()},
    }


def study(jobs=1):
    """Both causes."""
    del jobs
    return {"alpha": ALPHA, "wanted": WANTED, "audits": AUDITS, "rows": [run(c) for c in CAUSES]}


def markdown(found):
    """The table of docs/study.md."""
    lines = [
        "| deviation | choice | requests | tokens scored | tokens computed |",
        "|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        for name, n in row["needed"].items():
            if n["requests"] is None:
                lines.append(f"| {row['cause']} | {name} | > {MOST} | | |")
                continue
            scored = n["computed"] * (row["scored_share"] if name == "tokens" else 1.0)
            cells = f"{n['requests']} | {scored:,.0f} | {n['computed']:,.0f}"
            lines.append(f"| {row['cause']} | {name} | {cells} |")
    return "\n".join(lines)
