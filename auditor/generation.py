"""`generate`: seeded traces from the reference engine, honest or with one deviation.

The trace always *declares* the honest model, prompt, seed and parameters; what a deviation really did is
nowhere in it, as with a real provider.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from auditor.errors import OptionError
from auditor.fingerprints.activation_difr import (
    FINAL,
    SEED_BYTES,
    FingerprintKind,
    fingerprint,
    request_binding,
)
from auditor.fingerprints.wire import to_entry
from auditor.reference.checkpoint.digests import template_digest, tokenizer_digest
from auditor.reference.decode import Ask, Steps
from auditor.reference.decode import generate as decode
from auditor.reference.deviations import Deviation, Prompt
from auditor.reference.drafters import Drafter
from auditor.reference.loading import ReferenceModel, load_model
from auditor.reference.noise import noise_scheme
from auditor.reference.policies import Policy
from auditor.reference.sampling import SamplingSpec
from auditor.reference.speculation import find_rule, is_synchronised
from auditor.reference.stop_strings import stop_string_place
from auditor.reference.tokenizer import Tokenizer
from auditor.replay import VERSION
from auditor.trace import Engine, Speculation, Trace, Usage

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class Provider:
    """A provider run by the reference engine: a model in some dtype, decoded in batches of some size."""

    model: ReferenceModel
    tokenizer: Tokenizer
    recipe: str
    dtype: str
    batch_size: int
    tokenizer_digest: str
    template_digest: str | None

    @classmethod
    def load(
        cls,
        directory: Path | str,
        *,
        dtype: str = "bfloat16",
        batch_size: int = 32,
        adapter: Path | str | None = None,
    ) -> Provider:
        """Load a model to serve. Half-precision products run on float32 units and are rounded once.

        Raises:
            OptionError: unknown dtype or a batch size below 1.
            ModelNotFoundError, ModelUnsafeError, ModelUnsupportedError, ModelCorruptError: see `load_model`.
        """
        if dtype not in DTYPES:
            raise OptionError(f"dtype {dtype!r}", fix=f"choose one of {', '.join(DTYPES)}")
        if batch_size < 1:
            raise OptionError(f"a batch of {batch_size} requests")
        half = dtype != "float32"
        model = load_model(directory, dtype=DTYPES[dtype], wide_matmul=half, adapter=adapter)
        recipe = f"auditor-{VERSION}/{dtype}{'-wide' if half else ''}/decode-b{batch_size}"
        tokenizer = Tokenizer.load(directory)
        return cls(
            model,
            tokenizer,
            recipe,
            dtype,
            batch_size,
            tokenizer_digest(directory),
            template_digest(directory),
        )


def derived_seed(master: int, index: int) -> int:
    """Seed of request `index`, 63 bits: no two requests share noise, and the master seed reveals them all."""
    digest = hashlib.sha256(f"auditor seed {master} {index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def derived_projection_seed(master: int, index: int) -> bytes:
    """Projection seed of request `index`, 16 bytes."""
    return hashlib.sha256(f"auditor projection {master} {index}".encode()).digest()[:SEED_BYTES]


@dataclass(frozen=True, slots=True)
class Drafting:
    """How a provider speculates.

    Attributes:
        rule: how guesses decide tokens: `coupled` lets them change none, else a keyed rule
            (`reference/speculation/rules.py`), which judges the chains of a `ModelDrafter` that is not aware
            of the noise.
        drafter: guesses.
        logged: whether the drafts that a keyed rule judged are written into the log.
    """

    rule: str
    drafter: Drafter
    logged: bool = True

    @property
    def changes_tokens(self) -> bool:
        """Whether tokens may be others than those of plain sampling."""
        return not is_synchronised(self.rule)


def generate(
    provider: Provider,
    conversations: Sequence[Sequence[Mapping[str, Any]]],
    *,
    deviation: Deviation,
    seed: int,
    noise: str = "gumbel-pos-v1",
    sampling: SamplingSpec | None = None,
    other_model: ReferenceModel | None = None,
    fingerprints: FingerprintKind | None = None,
    drafting: Drafting | None = None,
    policy: Policy | None = None,
    hidden_tokens: int = 0,
    now: datetime | None = None,
) -> Iterator[Trace]:
    """Serve conversations and log them, in order, a batch at a time.

    Args:
        seed: master seed (`derived_seed`).
        sampling: declared parameters; `max_tokens` defaults to 200.
        other_model: what `model/substituted` serves.
        fingerprints: the kind to write beside each output, of the states that were really computed; none when
            None. Their projection is public, as no commitment comes before it.
        drafting: plain decoding when None.
        policy: how the cache is cut or rounded, and declared to be; the traces say so.
        hidden_tokens: output tokens, from the first, that are billed as hidden reasoning; at most all but
            one. They stay in the log, which is the provider's own until `audit commit` splits it.

    Raises:
        NoiseUnknownError: unknown `noise`, or a rule of speculation whose coins are not known for it.
        OptionError: the deviation needs another model and none is given, or cannot serve; fingerprints of a
            layer that the model does not have; a policy that the model cannot run under, or beside drafts.
        SamplingUnsupportedError: a rule that the scheme's engine does not offer.
        ContextLengthError: a prompt and its outputs exceed the context.
    """
    if not deviation.decodes:
        raise OptionError(
            f"deviation {deviation.name} is measured on logs and cannot serve", fix="use `audit matrix`"
        )
    spec = sampling or SamplingSpec(max_tokens=200)
    scheme = noise_scheme("greedy" if spec.greedy else noise)
    if policy is not None and drafting is not None:
        raise OptionError("drafts are not verified under a policy", fix="decode plainly, or without a policy")
    declared = provider.model if policy is None else policy.applied(provider.model)
    deviant = deviation.model(declared, other_model)
    if fingerprints is not None and fingerprints.layer != FINAL:
        if fingerprints.layer >= provider.model.config.num_hidden_layers:
            raise OptionError(f"layer {fingerprints.layer} of {provider.model.config.num_hidden_layers}")
        deviant = deviant.showing((min(fingerprints.layer, deviant.config.num_hidden_layers - 1),))
    created = (now or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%SZ")
    engine = Engine("auditor", VERSION, provider.dtype, "cpu", provider.recipe)
    ends = frozenset(provider.tokenizer.eos_ids)
    rule = None
    if drafting is not None and drafting.changes_tokens:
        rule = find_rule(drafting.rule, noise_scheme(noise), None)
    for start in range(0, len(conversations), provider.batch_size):
        batch = [tuple(c) for c in conversations[start : start + provider.batch_size]]
        prompts = [tuple(provider.tokenizer.encode_chat(messages)) for messages in batch]
        asks = [
            Ask(
                prompt=tuple(deviation.prompt(Prompt(ids, messages, provider.tokenizer))),
                noise_prompt_tokens=len(ids),
                spec=deviation.sampling(spec),
                seed=deviation.seed(derived_seed(seed, start + i)),
                scheme=noise_scheme(noise) if spec.greedy else scheme,
                max_tokens=spec.max_tokens or 200,
                stop_ids=ends,
                tokenizer=provider.tokenizer,
                speculation=rule,
            )
            for i, (ids, messages) in enumerate(zip(prompts, batch, strict=True))
        ]
        states: list[torch.Tensor] = []
        keep = states.append if fingerprints is not None else None
        steps: list[Steps] = []
        outputs = decode(
            deviant,
            asks,
            batch_size=provider.batch_size,
            drafter=None if drafting is None else drafting.drafter,
            on_hidden=keep,
            on_steps=steps.append,
        )
        for i, output in enumerate(outputs):
            text, finish_reason = _ending(output, asks[i].spec, ends, provider.tokenizer)
            entries: tuple[dict[str, str], ...] = ()
            if fingerprints is not None:
                own = fingerprint(
                    states.pop()[:, -deviant.config.hidden_size :],
                    fingerprints,
                    projection_seed=derived_projection_seed(seed, start + i),
                    binding=request_binding(prompts[i], output, derived_seed(seed, start + i)),
                )
                entries = (to_entry(own),)
            yield Trace(
                id=f"req-{derived_seed(seed, start + i):016x}",
                model=provider.model.directory.name,
                provider="auditor",
                created=created,
                model_digest=provider.model.digest,
                tokenizer_digest=provider.tokenizer_digest,
                template_digest=provider.template_digest,
                messages=batch[i],
                prompt_token_ids=prompts[i],
                output_token_ids=output,
                sampling=spec,
                seed=derived_seed(seed, start + i),
                noise=scheme.name,
                text=text,
                finish_reason=finish_reason,
                usage=_bill(len(prompts[i]), len(output), hidden_tokens),
                engine=engine,
                speculation=_logged(drafting, steps.pop()),
                policy=None if policy is None else str(policy),
                fingerprints=entries,
            )


def _bill(prompt: int, output: int, hidden: int) -> Usage:
    return Usage(prompt, output, min(hidden, output - 1) if hidden else None)


def _logged(drafting: Drafting | None, steps: Steps) -> Speculation:
    if drafting is None:
        return Speculation()
    return Speculation(drafting.rule, steps if drafting.logged and drafting.changes_tokens else None)


def _ending(
    output: tuple[int, ...], spec: SamplingSpec, ends: frozenset[int], tokenizer: Tokenizer
) -> tuple[str, str]:
    """Text, without the token or string that ended it, and finish reason of an output."""
    if output[-1] in spec.stop_token_ids or (output[-1] in ends and not spec.ignore_eos):
        return tokenizer.decode(output[:-1]), "stop"
    text = tokenizer.decode(output)
    if spec.stop and stop_string_place(tokenizer, output, spec.stop, min_tokens=spec.min_tokens) is not None:
        begins = [text.rfind(stop) for stop in spec.stop if stop in text]
        return text[: min(begins, default=len(text))], "stop"
    return text, "length"
