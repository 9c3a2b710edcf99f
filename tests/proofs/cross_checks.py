"""Are the simulated deviations as large as other people's implementations of the same? docs/cross_checks.md.

At the same logged prefixes of the demo model, float32 throughout: mean KL divergence, in nats, of the declared
model's next-token distribution from the deviating one's, by our simulation and by the other implementation
(`outside.py`, an environment of its own), and the share of seeded draws that change, over eight draws of noise a
position. Agreement: the ratio of mean KL within 20 %; its interval resamples requests.

    python -m tests.proofs.cross_checks --outside .venv-outside/bin/python
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch

from auditor.generation import Provider, generate
from auditor.preparation import prepare
from auditor.reference.demo.prompts import TARGET, demo_conversations
from auditor.reference.deviations import CATALOGUE, HONEST
from auditor.reference.sampling import SamplingSpec
from auditor.replay import Reference, prompt_of

SEED, REQUESTS, TOKENS = 47_000_000, 24, 64
DRAWS, BOOTSTRAPS = 8, 2_000
DOCUMENT = Path(__file__).parents[2] / "docs" / "cross_checks.md"
# Control rows of the other side: what it makes of the declared model itself.
CONTROLS = ("honest", "honest-cached")


def served():
    """Requests of the demo model whose prompts are longer than every budget."""
    provider = Provider.load(TARGET, dtype="float32", batch_size=8)
    asked = demo_conversations(4 * REQUESTS, SEED)
    spec = SamplingSpec(max_tokens=TOKENS, ignore_eos=True)
    long = sorted(asked, key=lambda messages: -sum(len(str(m["content"])) for m in messages))[:REQUESTS]
    return list(generate(provider, long, deviation=HONEST, seed=SEED, sampling=spec))


def ours(reference, traces, cause):
    """Logits of a deviation's model at the output positions, one array a request."""
    model = HONEST.model(reference.model, None) if cause is None else cause.model(reference.model, None)
    asked = []
    for trace in traces:
        request = prepare(trace, reference)
        fed = (cause or HONEST).prompt(prompt_of(trace, request, reference))
        asked.append((request, tuple(fed)))
    return [model.logits(rows).double() for rows in reference.runner.states(asked, model)]


def divergences(honest, other):
    """KL(honest || other) of every row, a tensor a request."""
    found = []
    for own, theirs in zip(honest, other, strict=True):
        log_p, log_q = own.log_softmax(-1), theirs.double().log_softmax(-1)
        found.append((log_p.exp() * (log_p - log_q)).sum(-1))
    return found


def changed(honest, other):
    """Share of draws that change: the same noise on both sides."""
    generator = torch.Generator().manual_seed(SEED)
    hits = rows = 0
    for own, theirs in zip(honest, other, strict=True):
        for _ in range(DRAWS):
            noise = -torch.log(-torch.log(torch.rand(own.shape, generator=generator, dtype=torch.float64)))
            hits += int(((own + noise).argmax(-1) != (theirs.double() + noise).argmax(-1)).sum())
            rows += len(own)
    return hits / rows


def ratio_interval(own, theirs):
    """Ours to theirs of mean KL, and its 95 % interval over resampled requests."""
    a, b = (np.array([float(d.sum()) for d in side]) for side in (own, theirs))
    generator = np.random.default_rng(SEED)
    draw = generator.integers(len(a), size=(BOOTSTRAPS, len(a)))
    ratios = a[draw].sum(1) / b[draw].sum(1)
    return a.sum() / b.sum(), *np.quantile(ratios, [0.025, 0.975])


def outside(python, traces, folder):
    """The other side's logits by row, split by request, and who made them."""
    requests = folder / "requests.json"
    asked = [{"prompt": t.prompt_token_ids, "output": t.output_token_ids} for t in traces]
    requests.write_text(json.dumps(asked))
    script = Path(__file__).with_name("outside.py")
    subprocess.run([python, script, TARGET, requests, folder], check=True)
    said = json.loads((folder / "outside.json").read_text())
    sizes = [len(t.output_token_ids) for t in traces]
    for name, row in said.items():
        path = folder / f"{name.replace('/', '--')}.npy"
        if path.exists():
            row["logits"] = torch.split(torch.from_numpy(np.load(path)), sizes)
    return said


def compare(python):
    """Rows of the table."""
    traces, reference = served(), Reference.load(TARGET)
    honest = ours(reference, traces, None)
    with tempfile.TemporaryDirectory() as folder:
        said = outside(python, traces, Path(folder))
        for name, row in said.items():
            if "logits" not in row:
                yield {"name": name, "by": row["package"], "refused": row["refused"]}
                continue
            theirs = divergences(honest, row["logits"])
            found = {"name": name, "by": row["package"], "theirs": float(torch.cat(theirs).mean())}
            if name in CONTROLS:
                yield found
                continue
            own = ours(reference, traces, CATALOGUE[name])
            mine = divergences(honest, own)
            yield found | {
                "ours": float(torch.cat(mine).mean()),
                "ratio": ratio_interval(mine, theirs),
                "changed": (changed(honest, own), changed(honest, row["logits"])),
            }


OPENING = f"""# Are the simulated deviations as large as real ones?

Made by `make cross-checks`: the same trick by our simulation and by somebody else's package, on the demo model in
float32, teacher-forced on {REQUESTS} honest requests of {TOKENS} tokens (seed {SEED}, long prompts). Mean KL divergence
from the declared model in nats; the ratio's 95 % interval resamples requests; *changed* is the share of tokens that
another draw would have been, under the same noise. Agreement is a ratio within 0.8 to 1.25.

Integers: torchao, as compressed-tensors, divides the largest of a group by 7.5 steps of int4 where ours takes 7, so
that ours is a little coarser, and at two bits, 1.5 steps against 1, far coarser.

| deviation | by | KL, ours | KL, theirs | ratio | 95 % | changed, ours / theirs | agrees |
|---|---|---|---|---|---|---|---|
"""


def line(row):
    if "refused" in row:
        return f"| {row['name']} | {row['by']} | | | | | | not made: {row['refused']} |"
    if "ours" not in row:
        return f"| {row['name']} (control) | {row['by']} | | {row['theirs']:.2g} | | | | |"
    ratio, low, high = row["ratio"]
    agrees = "yes" if 0.8 <= ratio <= 1.25 else "**no**"
    mine, theirs = row["changed"]
    return (
        f"| {row['name']} | {row['by']} | {row['ours']:.4g} | {row['theirs']:.4g} | {ratio:.2f} | "
        f"{low:.2f} to {high:.2f} | {mine:.3f} / {theirs:.3f} | {agrees} |"
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--outside", required=True, help="python of the other packages' environment")
    parser.add_argument("--out", type=Path, default=DOCUMENT)
    options = parser.parse_args()
    lines = []
    for row in compare(options.outside):
        lines.append(line(row))
        print(lines[-1], flush=True)
    options.out.write_text(OPENING + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
