"""How many inflated responses are caught, attack by attack: the table of docs/inflation.md.

Every attack of `reference/deviations/accounting.py` at four inflation rates, on the demo model's reasoning, seeds of
training, calibration and test apart. Each method gives a response one score; it is detected where its conformal
p-value is at most the stated rate. Responses needed are those after which `ResponseTest` convicts at alpha 0.001.

Goes on where it was interrupted: traffic and scores lie in --out.

    python -m tests.proofs.inflation --out out/inflation
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path

import numpy as np
import torch

from auditor.hidden_tokens.checking import canonical_excess
from auditor.hidden_tokens.decisions import p_values, responses_needed, worst_of
from auditor.hidden_tokens.embedders import HashingEmbedder, MiniLm
from auditor.hidden_tokens.features import OpenedResponse, Vectoriser, rules
from auditor.hidden_tokens.matching import CosineHead, fit_extractor
from auditor.hidden_tokens.reexecution import replay_blocks
from auditor.hidden_tokens.verifiers import CoinRule, CrossFitted, DeepSets, Example
from auditor.reference.demo.prompts import TARGET
from auditor.reference.deviations.accounting import INFLATIONS
from auditor.reference.loading import load_model
from auditor.reference.noise import noise_scheme
from auditor.reference.request import Request
from auditor.reference.runner import Runner
from auditor.reference.tokenizer import Tokenizer
from tests.proofs.inflation_commitments import structural
from tests.proofs.inflation_pool import BLOCK, SPEC, honest, inflated

STAGES = ("replayed", "trained", "published")
RATES = (0.1, 0.5, 1.0, 2.0)
ALPHA = 0.001
STRUCTURAL = ("accounting/naive-count", "accounting/forged-embeddings", "accounting/late-commit")
CONTENT = tuple(name for name in INFLATIONS if name not in STRUCTURAL)
SIZES = {"train": 160, "calibration": 300, "test": 60}
PUBLISHED_TEST = 30  # the sentence encoder is slow


class Study:
    def __init__(self, out, say):
        self.out, self.say = out, say
        self.tokenizer = Tokenizer.load(TARGET)
        self.pools = {split: honest(split, count, out, say) for split, count in SIZES.items()}

    def variants(self, split, name, rate):
        pool = self.pools[split]
        return [inflated(INFLATIONS[name], rate, r, pool, self.tokenizer) for r in pool]

    def opened(self, response, hidden):
        """All blocks, as the auditor sees them."""
        blocks = tuple(hidden[s : s + BLOCK] for s in range(0, len(hidden), BLOCK))
        texts = tuple(self.tokenizer.decode(list(b)) for b in blocks)
        answer = self.tokenizer.decode(list(response.visible))
        excess = canonical_excess(hidden, self.tokenizer)
        return OpenedResponse(blocks, tuple(range(len(blocks))), texts, answer, excess)

    def test_cells(self):
        yield "honest", 0.0, [r.hidden for r in self.pools["test"]]
        for name in CONTENT:
            for rate in RATES:
                yield name, rate, self.variants("test", name, rate)

    def once(self, name, make):
        """A stage's scores, made at most once."""
        path = self.out / f"{name}.json"
        if not path.exists():
            started = time.process_time()
            value = make()
            path.write_text(json.dumps(value))
            self.say(f"{name}: {time.process_time() - started:.0f} s of processor time")
        return json.loads(path.read_text())

    # With weights ----------------------------------------------------------------------------------

    def replayed(self):
        """Mean clipped margins of every block: {cell: [responses][blocks]}; kept cell by cell.

        Tail garbage may outgrow the context by some tokens; the replay ends where the context does.
        """
        path = self.out / "replayed.cells.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        found = dict(map(json.loads, lines))
        model = load_model(TARGET)
        runner, context = Runner(model), model.config.context_length

        def margins(pool, hiddens):
            requests = [
                Request(
                    r.prompt,
                    hidden[: context - len(r.prompt)],
                    SPEC,
                    r.seed,
                    noise_scheme("gumbel-pos-v1"),
                    self.tokenizer,
                )
                for r, hidden in zip(pool, hiddens, strict=True)
            ]
            return [s.margins.tolist() for s in replay_blocks(runner, requests, BLOCK)]

        pool = self.pools["calibration"]
        cells = [("calibration", pool, [r.hidden for r in pool])]
        cells += [
            (f"{name} {rate}", self.pools["test"], hiddens) for name, rate, hiddens in self.test_cells()
        ]
        for cell, pool, hiddens in cells:
            if cell not in found:
                found[cell] = margins(pool, hiddens)
                with path.open("a") as stream:
                    stream.write(json.dumps([cell, found[cell]]) + "\n")
                self.say(f"replayed {cell}")
        return found

    # Without weights -------------------------------------------------------------------------------

    def examples(self, without=()):
        """Honest training responses, and one inflated at a random rate by each attack."""
        source = random.Random(5)
        found = []
        for origin, r in enumerate(self.pools["train"]):
            found.append(Example(origin, self.opened(r, r.hidden), False))
            for name in CONTENT:
                rate = source.choice(RATES)
                if name not in without:
                    hidden = inflated(INFLATIONS[name], rate, r, self.pools["train"], self.tokenizer)
                    found.append(Example(origin, self.opened(r, hidden), True))
        return found

    def cells_opened(self, limit=None):
        pool = self.pools["calibration"]
        yield "calibration", [self.opened(r, r.hidden) for r in pool]
        for name, rate, hiddens in self.test_cells():
            pairs = list(zip(self.pools["test"], hiddens, strict=True))[:limit]
            yield f"{name} {rate}", [self.opened(r, h) for r, h in pairs]

    def trained(self):
        """Cross-fitted gradient boosting, trained on all attacks and without each of them; and the rules."""
        vectoriser = Vectoriser(HashingEmbedder(), self.tokenizer.decode)
        found = {"all": {}, "left-out": {}, "rules": {}}
        cells = list(self.cells_opened())
        for cell, responses in cells:
            found["rules"][cell] = [rules(r) for r in responses]
        model = CrossFitted(self.examples(), vectoriser, self.tokenizer.vocab_size, 1)
        for cell, responses in cells:
            found["all"][cell] = model.score(responses).tolist()
        self.say("gradient boosting: trained on all attacks")
        for left_out in CONTENT:
            model = CrossFitted(self.examples((left_out,)), vectoriser, self.tokenizer.vocab_size, 1)
            found["left-out"][left_out] = {
                cell: model.score(responses).tolist()
                for cell, responses in cells
                if cell.split()[0] in {left_out, "calibration", "honest"}
            }
            self.say(f"gradient boosting: without {left_out}")
        return found

    def published(self):
        """CoIn's rule and DeepSets verifier: sentence encoder, cosine heads, no cross-fitting, (A, B) only."""
        vectoriser = Vectoriser(MiniLm(), self.tokenizer.decode)
        source = random.Random(6)
        train, labels = [], []
        for r in self.pools["train"]:
            train.append(self.opened(r, r.hidden))
            labels.append(0.0)
            for name in source.sample(CONTENT, 2):
                hidden = inflated(
                    INFLATIONS[name], source.choice(RATES), r, self.pools["train"], self.tokenizer
                )
                train.append(self.opened(r, hidden))
                labels.append(1.0)
        clean = [t for t, label in zip(train, labels, strict=True) if not label]
        vocabulary = self.tokenizer.vocab_size
        heads = fit_extractor(clean, vectoriser.vectors(clean), vocabulary, 2, CosineHead)
        self.say("as published: heads fitted")

        def features(responses):
            return [
                heads.blocks(r, v)[:, :2]
                for r, v in zip(responses, vectoriser.vectors(responses), strict=True)
            ]

        deep = DeepSets(3)
        deep.fit(features(train), np.array(labels))
        found = {"rule": {}, "deepsets": {}}
        for cell, responses in self.cells_opened(PUBLISHED_TEST):
            blocks = features(responses)
            found["rule"][cell] = CoinRule().score(blocks).tolist()
            found["deepsets"][cell] = deep.score(blocks).tolist()
            self.say(f"as published: {cell}")
        return found


def worst(margins):
    return np.array([max(m) for m in margins])


def worst_of_prefix(margins, seed):
    """What one random block and all before it show."""
    source = random.Random(seed)
    return np.array([max(m[: source.randrange(len(m)) + 1]) for m in margins])


def without_weights(verifier, by_rule):
    """Cell -> scores of the fused test; the calibration's second half is calibration, the first ranks the tests."""
    half = len(verifier["calibration"]) // 2

    def tests(cell, part):
        columns = [
            verifier[cell],
            *([r[k] for r in by_rule[cell]] for k in ("copied-run", "canonical-excess")),
        ]
        return [np.array(c, float)[part] for c in columns]

    ranks = tests("calibration", slice(0, half))
    return {
        cell: worst_of(
            list(
                zip(
                    ranks,
                    tests(cell, slice(half, None) if cell == "calibration" else slice(None)),
                    strict=True,
                )
            )
        )
        for cell in verifier
    }


def methods(study):
    replayed = study.once("replayed", study.replayed)
    trained = study.once("trained", study.trained)
    found = {
        "replay, all opened": {c: worst(m) for c, m in replayed.items()},
        "replay, one prefix": {c: worst_of_prefix(m, c) for c, m in replayed.items()},
        "no weights": without_weights(trained["all"], trained["rules"]),
        "boosting alone": {c: np.array(s) for c, s in trained["all"].items()},
    }
    left_out = {}
    for name, cells in trained["left-out"].items():
        fused = without_weights(cells, trained["rules"])
        left_out |= {(name, cell): scores for cell, scores in fused.items()}
    found["no weights, attack unseen"] = left_out
    published = study.once("published", study.published)
    found["CoIn DeepSets"] = {c: np.array(s) for c, s in published["deepsets"].items()}
    found["CoIn rule"] = {c: np.array(s) for c, s in published["rule"].items()}
    return found


def wilson(hits, n, z=1.96):
    p, d = hits / n, 1 + z * z / n
    centre, half = p + z * z / (2 * n), z * ((p * (1 - p) + z * z / (4 * n)) / n) ** 0.5
    return max(0.0, (centre - half) / d), min(1.0, (centre + half) / d)


def row(calibration, scores, seed):
    """Detections at both rates, and responses needed."""
    p = p_values(calibration, scores)
    needed = responses_needed(calibration, scores, ALPHA, limit=400, draws=41, seed=seed)
    return {
        "n": len(scores),
        "at_1": int((p <= 0.01).sum()),
        "at_5": int((p <= 0.05).sum()),
        "needed": None if np.isinf(needed) else int(needed),
    }


def table(study):
    found, rows = methods(study), {}
    for method, cells in found.items():
        for name in CONTENT:
            for rate in RATES:
                keyed = method == "no weights, attack unseen"
                own, base = f"{name} {rate}", "calibration"
                scores, calibration = (cells[(name, c)] if keyed else cells[c] for c in (own, base))
                rows[f"{method}|{name}|{rate}"] = row(calibration, scores, len(rows))
        if method != "no weights, attack unseen":
            rows[f"{method}|honest|0"] = row(cells["calibration"], cells["honest 0.0"], len(rows))
    return rows


def print_tables(rows, checks, n_test):
    names = list(dict.fromkeys(key.split("|")[0] for key in rows))
    for method in names:
        print(
            f"\n### {method}\n\n| attack | "
            + " | ".join(f"{r:g}" for r in RATES)
            + " |\n|---|"
            + "---|" * len(RATES)
        )
        for name in CONTENT:
            cells = [cell(rows[f"{method}|{name}|{r}"]) for r in RATES]
            print(f"| {name.removeprefix('accounting/')} | " + " | ".join(cells) + " |")
        if f"{method}|honest|0" in rows:
            print(f"| honest | {cell(rows[f'{method}|honest|0'])} | | | |")
    print("\n### Checks that know no error rate\n\n| attack | refused | honest refused |\n|---|---|---|")
    for name, result in checks.items():
        low, high = wilson(result["refused"], result["n"])
        print(
            f"| {name.removeprefix('accounting/')} | {result['refused']} of {result['n']} ({low:.2f} to {high:.2f}) "
            f"[{', '.join(result['codes'])}] | {result['honest_refused']} of {n_test} |"
        )
    print(
        "\n### Averages over attacks at inflation 0.5, false-alarm rate at most 5 %\n\n| method | content attacks | all ten |\n|---|---|---|"
    )
    for method in names:
        shares = [rows[f"{method}|{n}|0.5"]["at_5"] / rows[f"{method}|{n}|0.5"]["n"] for n in CONTENT]
        sure = [c["refused"] / c["n"] for c in checks.values()]
        everything = f"{np.mean([*shares, *sure]):.3f}" if not method.startswith("CoIn") else ""
        print(f"| {method} | {np.mean(shares):.3f} | {everything} |")


def cell(r):
    low, high = wilson(r["at_5"], r["n"])
    needed = "over 400" if r["needed"] is None else r["needed"]
    return f"{r['at_1'] / r['n']:.2f} / {r['at_5'] / r['n']:.2f} ({low:.2f} to {high:.2f}), {needed}"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("out/inflation"))
    parser.add_argument(
        "--only", choices=STAGES, default=None, help="Make one stage's scores; several may run at a time."
    )
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    started = time.process_time()

    def say(text):
        print(f"{time.process_time() - started:6.0f} s  {text}", file=sys.stderr, flush=True)

    study = Study(options.out, say)
    if options.only is not None:
        study.once(options.only, getattr(study, options.only))
        return
    checks = study.once("structural", lambda: structural(study.pools["test"], STRUCTURAL, study.tokenizer))
    rows = table(study)
    (options.out / "table.json").write_text(json.dumps({"rows": rows, "checks": checks}, indent=1))
    print_tables(rows, checks, len(study.pools["test"]))
    say("done")


if __name__ == "__main__":
    main()
