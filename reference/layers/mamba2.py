"""The Mamba-2 mixer: a short convolution, a state-space recurrence, and a gated norm.

Its state (`span.state`) is replaced, never written to: keeping a copy of the dictionary keeps the state.
After a draft tree it is `Branches`, until it is said which rows were taken (STree, arXiv 2505.14969).
Source: Dao and Gu, arXiv 2405.21060; transformers 5.19's `Mamba2Mixer`, whose roundings these are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from auditor.errors import OptionError
from auditor.reference.architecture import Norm
from auditor.reference.layers.elementwise import silu, softplus
from auditor.reference.layers.linear import Product
from auditor.reference.layers.norm import RmsNorm
from auditor.reference.layers.scan import Memory, Steps, branch, nothing, scan

if TYPE_CHECKING:
    from auditor.reference.batch import Run, Span
    from auditor.reference.layers.parameters import Parameters


@dataclass(frozen=True, slots=True)
class Mamba2Plan:
    """The mixer of one layer.

    Attributes:
        heads, head_dim: of the recurrence's values. groups: of heads that share keys and queries (B and C).
        state_dim: of a key.
        taps: positions that the convolution sees, its own included. taps_bias: it has a bias.
        bias: the projections have biases.
        least_step, most_step: bounds of the time steps.
        norm: the gated one.
        module: its name under the layer.
    """

    hidden_size: int
    heads: int
    head_dim: int
    groups: int
    state_dim: int
    taps: int
    taps_bias: bool
    bias: bool
    least_step: float
    most_step: float
    norm: Norm
    module: str

    @property
    def width(self) -> int:
        """Of values and gate."""
        return self.heads * self.head_dim

    @property
    def channels(self) -> int:
        """That the convolution mixes over time: values, keys and queries."""
        return self.width + 2 * self.groups * self.state_dim

    def build(self, parameters: Parameters, prefix: str, index: int) -> Mamba2:
        """Read `prefix`.`module`."""
        own = f"{prefix}.{self.module}"
        inner = self.width + self.channels + self.heads
        return Mamba2(
            self,
            index,
            inward=parameters.linear(f"{own}.in_proj", inner, self.hidden_size, bias=self.bias),
            taps=parameters.vector(f"{own}.conv1d.weight", self.channels, 1, self.taps)[:, 0].T.float(),
            taps_bias=parameters.vector(f"{own}.conv1d.bias", self.channels).float()
            if self.taps_bias
            else None,
            step_bias=parameters.vector(f"{own}.dt_bias", self.heads),
            decay=-parameters.vector(f"{own}.A_log", self.heads).float().exp(),
            skip=parameters.vector(f"{own}.D", self.heads).float(),
            norm=parameters.norm(f"{own}.norm", self.width, self.norm),
            outward=parameters.linear(f"{own}.out_proj", self.hidden_size, self.width, bias=self.bias),
            dtype=parameters.dtype,
        )


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """What a sequence carries through one layer: the convolution's last inputs, and the memory."""

    position: int
    window: Tensor
    memory: Memory


@dataclass(frozen=True, slots=True, eq=False)
class Branches:
    """What a sequence carries while it is not known which rows of a draft tree it goes on from.

    Not a state for each row but what each brought, from which the rows taken are gone through again.
    """

    layer: Mamba2
    before: State
    mixed: Tensor
    steps: Tensor

    def taken(self, rows: list[int]) -> State:
        """The state after some rows, each of which is the parent of the next."""
        return self.layer._through(self.mixed[rows], self.steps[rows], self.before, exact=False)[1]  # noqa: SLF001


@dataclass(frozen=True, slots=True, eq=False)
class Mamba2:
    """One layer's mixer with its parameters."""

    plan: Mamba2Plan
    index: int
    inward: Product
    taps: Tensor
    taps_bias: Tensor | None
    step_bias: Tensor
    decay: Tensor
    skip: Tensor
    norm: RmsNorm
    outward: Product
    dtype: torch.dtype

    def inputs(self, x: Tensor, run: Run, rows: slice) -> tuple[Tensor, ...]:
        """Gate [n, width], what the convolution mixes [n, channels], and time steps [n, heads]."""
        del run, rows
        plan = self.plan
        return tuple(torch.split(self.inward(x), [plan.width, plan.channels, plan.heads], dim=1))

    def mix(self, parts: tuple[Tensor, ...], run: Run) -> Tensor:
        """What every row remembers and its gate, float32 [rows, 2 * width].

        Raises:
            OptionError: a sequence whose state is not there.
        """
        gate, mixed, steps = parts
        out = torch.empty(len(mixed), self.plan.width, device=mixed.device)
        for span, own in zip(run.spans, run.rows, strict=True):
            before = self._state(span, mixed)
            after: State | Branches
            if span.ancestors is not None:
                out[own] = self._branching(mixed[own], steps[own], before, span.ancestors)
                after = Branches(self, before, mixed[own].clone(), steps[own].clone())
            else:
                out[own], after = self._through(mixed[own], steps[own], before, exact=run.exact)
            if span.state is not None:
                span.state[self.index] = after
        return torch.cat([out, gate.float()], dim=1)

    def outputs(self, mixed: Tensor) -> Tensor:
        """Gate, normalise and project back, [n, hidden]."""
        remembered, gate = mixed.chunk(2, dim=1)
        return self.outward(self.norm(remembered * silu(gate)).to(self.dtype))

    def _state(self, span: Span, like: Tensor) -> State:
        plan = self.plan
        if span.start == 0:
            empty = nothing(plan.heads, plan.groups, plan.state_dim, plan.head_dim, like.device)
            return State(0, like.new_zeros(plan.taps - 1, plan.channels), empty)
        state = None if span.state is None else span.state.get(self.index)
        if not isinstance(state, State) or state.position != span.start:
            raise OptionError(
                f"the recurrent state at position {span.start} is not there",
                fix="compute the sequence again from its beginning",
            )
        return state

    def _through(self, mixed: Tensor, steps: Tensor, state: State, *, exact: bool) -> tuple[Tensor, State]:
        """Outputs [rows, width] of one sequence's new rows, and its state after them."""
        taps, rows = self.plan.taps, len(mixed)
        joined = torch.cat([state.window, mixed])
        new, direct = self._steps([joined[tap : tap + rows] for tap in range(taps)], steps)
        out, memory = scan(state.memory, new, exact=exact)
        out = out + direct
        return out.flatten(1), State(state.position + rows, joined[rows:].clone(), memory)

    def _branching(self, mixed: Tensor, steps: Tensor, state: State, ancestors: Tensor) -> Tensor:
        """Outputs [rows, width] of the rows of a draft tree."""
        taps, joined = self.plan.taps, torch.cat([state.window, mixed])
        # The newest inputs on each row's way, its own last.
        paths = [
            [*range(taps - 1), *(taps - 1 + n for n in row.nonzero()[:, 0].tolist())][-taps:]
            for row in ancestors
        ]
        places = torch.tensor(paths, device=mixed.device)
        new, direct = self._steps([joined[places[:, tap]] for tap in range(taps)], steps)
        return (branch(state.memory, new, ancestors) + direct).flatten(1)

    def _steps(self, seen: list[Tensor], steps: Tensor) -> tuple[Steps, Tensor]:
        """What rows bring to the recurrence, and what passes it by, [rows, heads, head_dim].

        Args:
            seen: by tap, the convolution's inputs [rows, channels].
        """
        plan = self.plan
        keys = plan.groups * plan.state_dim
        convolved = self._convolved(seen).float()
        x, key, query = torch.split(convolved, [plan.width, keys, keys], dim=1)
        x = torch.unflatten(x, 1, (plan.heads, plan.head_dim))
        step = softplus(steps + self.step_bias).clamp(plan.least_step, plan.most_step).float()
        new = Steps(
            x * step[..., None],
            step * self.decay,
            torch.unflatten(key, 1, (plan.groups, -1)),
            torch.unflatten(query, 1, (plan.groups, -1)),
        )
        return new, x * self.skip[:, None]

    def _convolved(self, seen: list[Tensor]) -> Tensor:
        """Activated convolution [rows, channels], in its dtype; sums are in the taps' order."""
        total = torch.zeros_like(seen[0], dtype=torch.float32)
        if self.taps_bias is not None:
            total = self.taps_bias.expand(len(total), -1)
        for own, weight in zip(seen, self.taps, strict=True):
            total = total + weight * own.float()
        return silu(total.to(seen[0].dtype))
