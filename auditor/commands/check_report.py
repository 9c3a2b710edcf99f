"""What `audit check` found, response by response, and its content test."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from auditor.errors import AuditError, OptionError, VerificationFailedError

if TYPE_CHECKING:
    from auditor.hidden_tokens.checking import Committed, Opened
    from auditor.hidden_tokens.content import Likelihood
    from auditor.hidden_tokens.decisions import ResponseTest
    from auditor.merkle.token_openings import Challenge, Opening
    from auditor.reference.tokenizer import Tokenizer
    from auditor.trace import Trace


class CheckReport:
    """Collects what each response came to, and prints it."""

    def __init__(self) -> None:
        self.traces: list[Trace] = []
        self.failures: list[tuple[str, AuditError]] = []
        self.unreadable: list[AuditError] = []
        self.opened: list[tuple[str, Opened]] = []
        self.asked: list[Challenge] = []
        self.timed = self.unasked = 0
        self.content: ResponseTest | None = None
        self.p_values: list[float] = []

    def failed(self, trace: Trace, problem: AuditError) -> None:
        """A response whose commitment or opening does not hold."""
        self.failures.append((trace.id, problem))

    def passed(
        self, trace: Trace, known: Committed, challenge: Challenge, opening: Opening, found: Opened
    ) -> None:
        """A response that holds; its trace goes on with the opening in it."""
        self.opened.append((trace.id, found))
        self.asked.append(challenge)
        self.timed += known.timed
        with_opening = replace(known.commitment, challenge=challenge, opening=opening)
        self.traces.append(replace(trace, commitment=with_opening.to_json(trace.id)))

    def judge(
        self, honest: list[Trace], tokenizer: Tokenizer, alpha: float, weights: Path | None = None
    ) -> None:
        """Judge the content of all that passed; they were opened by draws of one size.

        Args:
            weights: of the claimed model, for likelihoods; None to do without.

        Raises:
            OptionError: several sizes; otherwise as `ContentTest` and `ResponseTest`.
        """
        from auditor.hidden_tokens.content import ContentTest, Draw, opened_response  # noqa: PLC0415
        from auditor.hidden_tokens.embedders import HashingEmbedder  # noqa: PLC0415

        draws = {
            Draw(found.head.block, challenge.count, challenge.prefix)
            for (_, found), challenge in zip(self.opened, self.asked, strict=True)
        }
        if len(draws) > 1:
            raise OptionError("the challenges drew blocks in several ways", where="--honest")
        answers = [tokenizer.decode(list(trace.output_token_ids or ())) for trace in self.traces]
        prompts = _prompts(self.traces)
        responses = [
            opened_response(found, answer, prompt)
            for (_, found), answer, prompt in zip(self.opened, answers, prompts, strict=True)
        ]
        draw = draws.pop()
        every = [*prompts, *_prompts(honest)]
        likelihood = None if weights is None else _likelihood(weights, draw.block, every)
        test = ContentTest(honest, draw, tokenizer, HashingEmbedder(), likelihood=likelihood)
        self.p_values = test.p_values(responses).tolist()
        self.content = test.accumulated(responses, alpha)

    @property
    def convicted(self) -> bool:
        """Whether the content test convicts."""
        return self.content is not None and self.content.convicts

    @property
    def exit_status(self) -> int:
        """1 when a check fails or the content convicts, else 2 when something was not checked, else 0."""
        problems = [*self.unreadable, *(problem for _, problem in self.failures)]
        if self.convicted or any(isinstance(p, VerificationFailedError) for p in problems):
            return 1
        return 2 if problems else 0

    def missing(self, asked: set[str], log: Path) -> None:
        """Refuse a challenge of a response that the log does not have.

        Raises:
            OptionError: there is one.
        """
        left = asked - {request for request, _ in self.failures} - {request for request, _ in self.opened}
        if left:
            raise OptionError(f"response {min(left)} was challenged and is not in the log", where=str(log))

    def show(self, output_format: str) -> None:
        """Print the report; failures also go to standard error, one line each."""
        from auditor.commands import print_error  # noqa: PLC0415

        for problem in (*self.unreadable, *(problem for _, problem in self.failures)):
            print_error(problem)
        if output_format == "json":
            click.echo(json.dumps(self._summary(), allow_nan=False))
        else:
            self._print()

    @property
    def _seen(self) -> tuple[int, int, float]:
        seen = sum(found.exposure.seen for _, found in self.opened)
        hidden = sum(found.exposure.hidden for _, found in self.opened)
        return seen, hidden, seen / hidden if hidden else 0.0

    def _summary(self) -> dict[str, Any]:
        seen, hidden, share = self._seen
        failed = [
            {"request": request, "passed": False, "code": problem.code, "problem": problem.message}
            for request, problem in self.failures
        ]
        return {
            "schema": "auditor.token-check/v1",
            "passed": len(self.opened),
            "failed": len(self.failures),
            "not_challenged": self.unasked,
            "seen": seen,
            "hidden": hidden,
            "share": share,
            "content": self._content(),
            "responses": [_row(request, found) for request, found in self.opened] + failed,
        }

    def _print(self) -> None:
        seen, hidden, share = self._seen
        held = len(self.opened)
        click.echo(f"{held} responses hold, {len(self.failures)} fail, {self.unasked} not challenged")
        click.echo(f"  {seen:,} of {hidden:,} hidden tokens seen ({share:.1%})")
        excess = sum(found.excess for _, found in self.opened)
        click.echo(f"  {excess:,} tokens more than the canonical tokenization of what was opened")
        if held:
            how = f"by the client's clock in {self.timed} of {held}, by the order of heads in the rest"
            click.echo(f"  committed before the answer: {how}")
        content = self._content()
        if content is not None:
            outcome = "inconsistent" if content["convicts"] else "nothing to accuse of"
            click.echo(
                f"  content: {outcome} at alpha {content['alpha']:g}, e-value {content['e_value']:.3g} of "
                f"{content['needed']:,.0f}; least p-value {min(self.p_values):.3g}"
            )

    def _content(self) -> dict[str, Any] | None:
        if self.content is None:
            return None
        from auditor.result import e_value  # noqa: PLC0415

        return {
            "alpha": self.content.alpha,
            "e_value": e_value(self.content.log_e),
            "needed": 2 / self.content.alpha,
            "convicts": self.convicted,
            "p_values": self.p_values,
        }


def _prompts(traces: list[Trace]) -> list[tuple[int, ...]]:
    return [trace.prompt_token_ids or () for trace in traces]


def _likelihood(weights: Path, block: int, prompts: list[tuple[int, ...]]) -> Likelihood:
    """Likelihood of what was opened under the claimed model.

    Raises:
        OptionError: a trace without prompt ids. Otherwise as `load_model`.
    """
    from auditor.hidden_tokens.reexecution import least_log_probability  # noqa: PLC0415
    from auditor.reference.loading import load_model  # noqa: PLC0415
    from auditor.reference.runner import Runner  # noqa: PLC0415

    if not all(prompts):
        raise OptionError("likelihoods need the prompt ids of every trace", where="--likelihood")
    runner = Runner(load_model(weights))
    return lambda response: least_log_probability(runner, response.prompt, response.runs, block)


def _row(request: str, found: Opened) -> dict[str, Any]:
    return {
        "request": request,
        "passed": True,
        "seen": found.exposure.seen,
        "hidden": found.exposure.hidden,
        "blocks": sorted(found.blocks),
        "canonical_excess": found.excess,
    }
