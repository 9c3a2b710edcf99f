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
from auditor.reference.demo.prompts import DRAFT, TARGET, demo_conversations
from auditor.reference.deviations import CATALOGUE, HONEST, undeclared_adapter
from auditor.reference.model import Model
from auditor.reference.noise import noise_scheme
from auditor.reference.sampling import SamplingSpec
from auditor.replay import Reference, prompt_of
from tests.proofs import cross_laws, rank4_adapter

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


def ours(reference, traces, cause, other=None):
    """Logits of a deviation's model at the output positions, one array a request."""
    model = HONEST.model(reference.model, None) if cause is None else cause.model(reference.model, other)
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
    asked = [
        {"messages": list(t.messages), "prompt": t.prompt_token_ids, "output": t.output_token_ids}
        for t in traces
    ]
    task = {
        "model": str(TARGET),
        "draft": str(DRAFT),
        "adapter": str(folder / "adapter"),
        "every": cross_laws.EVERY,
        "draws": cross_laws.DRAWS,
        "requests": asked,
    }
    (folder / "task.json").write_text(json.dumps(task))
    script = Path(__file__).with_name("outside.py")
    subprocess.run([python, script, folder / "task.json", folder], check=True)
    said = json.loads((folder / "outside.json").read_text())
    sizes = [len(t.output_token_ids) for t in traces]
    for name, row in said.items():
        path = folder / f"{name.replace('/', '--')}.npy"
        if path.exists():
            rows = torch.from_numpy(np.load(path))
            row["logits"] = torch.split(rows, sizes) if len(rows) == sum(sizes) else rows
    return said


def compare(python):
    """Rows of the tables, (table, row)."""
    traces, reference = served(), Reference.load(TARGET)
    honest = ours(reference, traces, None)
    with tempfile.TemporaryDirectory() as folder:
        rank4_adapter.train(Path(folder) / "adapter")
        said = outside(python, traces, Path(folder))
        for name, row in said.items():
            begun = {"name": name, "by": row["package"]}
            if "logits" not in row:
                yield "models", begun | {"refused": row["refused"]}
            elif row["kind"] == "laws":
                yield "laws", begun | cross_laws.compared_laws(name, honest, traces, row["logits"])
            elif name == "acceptance/ratio":
                draft = ours(reference, traces, CATALOGUE["model/substituted"], Model.load(DRAFT))
                yield "acceptance", begun | cross_laws.compared_acceptance(honest, draft, row["logits"])
            elif name == "sampler/beam-4":
                scheme = noise_scheme("gumbel-pos-v1")
                found = cross_laws.compared_beams(Model.load(TARGET), traces, scheme, row["logits"])
                yield "beams", begun | found
            else:
                cause = None if name in CONTROLS else cause_of(name, Path(folder) / "adapter")
                yield "models", begun | compared_models(reference, traces, honest, cause, row["logits"])


def cause_of(name, adapter):
    return undeclared_adapter(adapter) if name == "adapter/lora" else CATALOGUE[name.partition(" ")[0]]


def compared_models(reference, traces, honest, cause, logits):
    """A row of the first table; None is a control."""
    theirs = divergences(honest, logits)
    found = {"theirs": float(torch.cat(theirs).mean())}
    if cause is None:
        return found
    own = ours(reference, traces, cause)
    mine = divergences(honest, own)
    return found | {
        "ours": float(torch.cat(mine).mean()),
        "ratio": ratio_interval(mine, theirs),
        "changed": (changed(honest, own), changed(honest, logits)),
    }


OPENING = f"""# Are the simulated deviations as large as real ones?

Made by `make cross-checks`: the same trick by our simulation and by somebody else's package, on the demo model in
float32, teacher-forced on {REQUESTS} honest requests of {TOKENS} tokens (seed {SEED}, long prompts). Mean KL divergence
from the declared model in nats; the ratio's 95 % interval resamples requests; *changed* is the share of tokens that
another draw would have been, under the same noise. Agreement is a ratio within 0.8 to 1.25.

Integers are rounded as torchao, compressed-tensors and GPTQ round them, the largest of a group at 7.5 steps of int4
(decision 0031). The cache of `kv/quantized` is transformers' `QuantizedCache` with a residual of 32 tokens. `adapter/lora`
is a trained adapter of rank 4, `prompt/system` the chat template's text by transformers' tokenizer.

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


LAWS = f"""
## What is drawn from

Filters, temperatures, penalties and watermarks by transformers' logits processors, at the same positions. Size: mean
total variation distance from the declared model's law; *apart*: of the two laws from each other, mean and largest. A law
agrees where the largest is below {cross_laws.SAME_LAW:g}; a watermark's halves of the vocabulary are hashed, so there the
sizes are compared.

| deviation | by | distance, ours | theirs | ratio | apart, mean / largest | agrees |
|---|---|---|---|---|---|---|
"""


def law_line(row):
    mean, most = row["apart"]
    hashed = "watermark" in row["name"]
    agrees = 0.8 <= row["ratio"] <= 1.25 if hashed else most < cross_laws.SAME_LAW
    apart = "another hash" if hashed else f"{mean:.1e} / {most:.1e}"
    return (
        f"| {row['name']} | {row['by']} | {row['ours']:.4g} | {row['theirs']:.4g} | {row['ratio']:.3f} | {apart} "
        f"| {'yes' if agrees else '**no**'} |"
    )


def acceptance_text(row):
    exact, mine, theirs = row["kept"]
    own, other, twin = row["apart"]
    return (
        f"\n## Acceptance\n\n`acceptance/ratio` beside assisted generation ({row['by']}, `_speculative_sampling`), one "
        f"draft of the demo's draft model at {row['positions']} positions, {cross_laws.DRAWS:,} draws each: drafts "
        f"kept {mine:.4f} by ours and {theirs:.4f} by theirs, {exact:.4f} by the formula. Mean total variation of "
        f"what came out from the target's law: {own:.4f} ours, {other:.4f} theirs, {twin:.4f} for as many plain "
        "draws of that law. The lossy rules, k-seq and the bugs have no released implementation that installs "
        "beside these; their tests hold each to its formula.\n"
    )


def beams_text(row):
    mine, theirs = row["nats"]
    return (
        f"\n## Beams\n\n`sampler/beam-4` beside `generate(num_beams=4)` ({row['by']}): the same text in {row['same']} "
        f"of {row['of']} requests; mean log-likelihood {mine:.4f} nats a token by ours, {theirs:.4f} by theirs.\n"
    )


CLOSING = """
## Without an outside implementation

`accounting/`: what is billed means nothing outside of an audit; `docs/inflation.md` holds the attacks against their
papers' figures. `seed/`, `partly/` and `sampler/best-of-4`: which request gets which seed or model is no package's
matter, and transformers has no best-of-n. `attention/` variants have no released weights or layers that fit here.
"""


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--outside", required=True, help="python of the other packages' environment")
    parser.add_argument("--out", type=Path, default=DOCUMENT)
    options = parser.parse_args()
    found = {"models": [], "laws": [], "acceptance": [], "beams": []}
    lines = {"models": line, "laws": law_line, "acceptance": acceptance_text, "beams": beams_text}
    for table, row in compare(options.outside):
        found[table].append(lines[table](row))
        print(found[table][-1], flush=True)
    tables = (
        OPENING, "\n".join(found["models"]), "\n", LAWS, "\n".join(found["laws"]), "\n", *found["acceptance"],
        *found["beams"], CLOSING,
    )  # fmt: skip
    options.out.write_text("".join(tables))


if __name__ == "__main__":
    main()
