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
from tests.proofs.inflation_tables import ALPHA, CONTENT, RATES, STRUCTURAL, print_tables

STAGES = ("replayed", "likelihoods", "trained", "published")
SIZES = {"train": 160, "calibration": 600, "test": 60, "honest": 400}
PUBLISHED = {"calibration": 300, "test": 30, "honest": 200}  # the sentence encoder is slow


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
        """Cell, split, hidden tokens: honest responses of their own, and the test's inflated ones."""
        for split in ("calibration", "honest"):
            yield split, split, [r.hidden for r in self.pools[split]]
        for name in CONTENT:
            for rate in RATES:
                yield f"{name} {rate}", "test", self.variants("test", name, rate)

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
        """Mean clipped margins of every block, by the seed: {cell: [responses][blocks]}."""
        return self._scored("replayed", lambda scores: scores.margins.tolist())

    def likelihoods(self):
        """Mean log-probability of each response's unlikeliest block, no seed used: {cell: [responses]}."""
        return self._scored("likelihoods", lambda scores: float(scores.log_probabilities.min()))

    def _scored(self, name, of):
        """What a replay of every cell gives; kept cell by cell.

        Tail garbage may outgrow the context by some tokens; the replay ends where the context does.
        """
        path = self.out / f"{name}.cells.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        found = dict(map(json.loads, lines))
        model, scheme = load_model(TARGET), noise_scheme("gumbel-pos-v1")
        runner, context = Runner(model), model.config.context_length
        for cell, split, hiddens in self.test_cells():
            if cell in found:
                continue
            requests = [
                Request(r.prompt, hidden[: context - len(r.prompt)], SPEC, r.seed, scheme, self.tokenizer)
                for r, hidden in zip(self.pools[split], hiddens, strict=True)
            ]
            found[cell] = [of(scores) for scores in replay_blocks(runner, requests, BLOCK)]
            with path.open("a") as stream:
                stream.write(json.dumps([cell, found[cell]]) + "\n")
            self.say(f"{name}: {cell}")
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

    def cells_opened(self, sizes=SIZES):
        for cell, split, hiddens in self.test_cells():
            pairs = list(zip(self.pools[split], hiddens, strict=True))[: sizes[split]]
            yield cell, [self.opened(r, h) for r, h in pairs]

    def trained(self):
        """Cross-fitted gradient boosting, trained on all attacks and without each of them; and the rules."""
        vectoriser = Vectoriser(HashingEmbedder(), self.tokenizer.decode)
        found = {"all": {}, "left-out": {}, "rules": {}}
        cells = list(self.cells_opened())
        model = CrossFitted(self.examples(), vectoriser, self.tokenizer.vocab_size, 1)
        for cell, responses in cells:
            found["rules"][cell] = [rules(r, model.lexicons) for r in responses]
            found["all"][cell] = model.score(responses).tolist()
        self.say("gradient boosting: trained on all attacks")
        for left_out in CONTENT:
            model = CrossFitted(self.examples((left_out,)), vectoriser, self.tokenizer.vocab_size, 1)
            found["left-out"][left_out] = {
                cell: model.score(responses).tolist()
                for cell, responses in cells
                if cell.split()[0] in {left_out, "calibration"}
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
        for cell, responses in self.cells_opened(PUBLISHED):
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


def fused(verifier, by_rule, likelihoods=None):
    """Cell -> scores of the fused test; the calibration's second half is calibration, the first ranks the tests."""
    half = len(verifier["calibration"]) // 2

    def tests(cell, part):
        columns = [
            verifier[cell],
            *([r[k] for r in by_rule[cell]] for k in by_rule[cell][0]),
            *([] if likelihoods is None else [-np.array(likelihoods[cell])]),
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


def false_alarms(trained, splits=400):
    """Rates of the fused test without weights over random splits of all honest responses, [splits, 2].

    One calibration has its luck; the conformal promise is of the mean.
    """
    rng, half = np.random.default_rng(0), SIZES["calibration"] // 2
    by_rule = trained["rules"]["calibration"] + trained["rules"]["honest"]
    columns = [np.array(trained["all"]["calibration"] + trained["all"]["honest"])]
    columns += [np.array([r[k] for r in by_rule]) for k in by_rule[0]]
    found = []
    for _ in range(splits):
        places = rng.permutation(len(by_rule))
        ranks, calibration, fresh = np.split(places, [half, 2 * half])
        scores = [worst_of([(c[ranks], c[part]) for c in columns]) for part in (calibration, fresh)]
        p = p_values(*scores)
        found.append([(p <= 0.01).mean(), (p <= 0.05).mean()])
    return np.array(found)


def methods(study):
    replayed = study.once("replayed", study.replayed)
    likelihoods = study.once("likelihoods", study.likelihoods)
    trained = study.once("trained", study.trained)
    found = {
        "weights, all opened": {c: worst(m) for c, m in replayed.items()},
        "weights, one prefix": {c: worst_of_prefix(m, c) for c, m in replayed.items()},
        "weights, no seed": fused(trained["all"], trained["rules"], likelihoods),
        "no weights": fused(trained["all"], trained["rules"]),
    }
    left_out = {}
    for name, cells in trained["left-out"].items():
        unseen = fused(cells, trained["rules"])
        left_out |= {(name, cell): scores for cell, scores in unseen.items()}
    found["no weights, attack unseen"] = left_out
    published = study.once("published", study.published)
    found["CoIn DeepSets"] = {c: np.array(s) for c, s in published["deepsets"].items()}
    found["CoIn rule"] = {c: np.array(s) for c, s in published["rule"].items()}
    return found


def row(calibration, scores, seed):
    """Detections at both rates, response by response, and responses needed."""
    p = p_values(calibration, scores)
    needed = responses_needed(calibration, scores, ALPHA, limit=400, draws=41, seed=seed)
    return {
        "n": len(scores),
        "hits_1": (p <= 0.01).astype(int).tolist(),
        "hits_5": (p <= 0.05).astype(int).tolist(),
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
            rows[f"{method}|honest|0"] = row(cells["calibration"], cells["honest"], len(rows))
    return rows


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
    rates = false_alarms(study.once("trained", study.trained))
    low, high = np.percentile(rates, [5, 95], axis=0)
    for name, mean, a, b in zip(("1 %", "5 %"), rates.mean(axis=0), low, high, strict=True):
        print(
            f"\nFalse alarms without weights at {name}, {len(rates)} splits: {mean:.4f} ({a:.4f} to {b:.4f})"
        )
    say("done")


if __name__ == "__main__":
    main()
