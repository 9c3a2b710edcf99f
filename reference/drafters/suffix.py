"""SuffixDecoding: what followed the longest endings that this sequence, or earlier outputs, had before.

Two tries of counted continuations, a depth of 24 at most: one over each running sequence, one over the
outputs of finished ones, of which the oldest leave first. Source: arXiv 2411.04975; its score by path
probability is the shared heap's. The outputs of each tenant have a trie of their own, since speed would tell
one tenant what another was answered.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from auditor.reference.drafters.cost import Budget
from auditor.reference.drafters.counts import LEVELS, backed_off
from auditor.reference.drafters.drafter import Context, Verified
from auditor.reference.drafters.expansion import Candidates, Expansion
from auditor.reference.drafters.recycling import WIDTH, Matrix
from auditor.reference.drafters.tree import DraftTree
from auditor.reference.future_noise import FutureNoise

_DEPTH = 24


Ending = tuple[tuple[int, int], ...]
"""Nodes of all endings of a text that a trie has, the longest first: lengths and numbers."""

State = tuple[Ending, Ending, int]

_ROOT = 0


class SuffixTrie:
    """Counted runs of tokens of up to `_DEPTH`, of at most `most` tokens of text.

    A node is a number. There are two dozen for each token, and an object each would keep Python's collector
    of cycles busy; dictionaries of numbers are nothing to it. Once a text is gone a number may stand
    for another run while somebody follows it: a guess may be wrong.
    """

    def __init__(self, most: int = 1 << 20) -> None:
        self._counts: list[int] = [0]
        self._children: list[dict[int, int]] = [{}]
        self._unused: list[int] = []
        self._most, self._held = most, 0
        self._texts: deque[Sequence[int]] = deque()

    def followed(self, node: int) -> bool:
        """Whether anything followed a run."""
        return bool(self._children[node])

    def counts(self, node: int) -> dict[int, int]:
        """How often each token followed a run."""
        counts = self._counts
        return {token: counts[child] for token, child in self._children[node].items()}

    def ending(self, before: Ending, token: int) -> Ending:
        """Endings after one more token."""
        steps = ((n + 1, self._children[node].get(token)) for n, node in (*before, (0, _ROOT)))
        return tuple((n, child) for n, child in steps if child is not None)

    def add(self, open_runs: deque[int], token: int) -> None:
        """Append a token to a text, `open_runs` being the nodes of its last endings, the longest first."""
        counts, children = self._counts, self._children
        open_runs.append(_ROOT)
        for place, node in enumerate(open_runs):
            child = children[node].get(token)
            if child is None:
                child = self._new()
                children[node][token] = child
            counts[child] += 1
            open_runs[place] = child
        if len(open_runs) >= _DEPTH:
            open_runs.popleft()

    def remember(self, text: Sequence[int]) -> None:
        """Add a whole text; the oldest go when there is too much."""
        open_runs: deque[int] = deque()
        for token in text:
            self.add(open_runs, token)
        self._texts.append(text)
        self._held += len(text)
        while self._held > self._most and len(self._texts) > 1:
            oldest = self._texts.popleft()
            self._held -= len(oldest)
            self._remove(oldest)

    def _new(self) -> int:
        if self._unused:
            return self._unused.pop()
        self._counts.append(0)
        self._children.append({})
        return len(self._counts) - 1

    def _remove(self, text: Sequence[int]) -> None:
        for start in range(len(text)):
            node = _ROOT
            for token in text[start : start + _DEPTH]:
                child = self._children[node][token]
                self._counts[child] -= 1
                if self._counts[child] == 0:  # seen nowhere else, nor is anything that follows it
                    del self._children[node][token]
                    self._drop(child)
                    break
                node = child

    def _drop(self, node: int) -> None:
        while True:
            following = self._children[node]
            self._counts[node] = 0
            self._unused.append(node)
            if not following:
                return
            ((_, node),) = following.items()  # seen once: one thing followed
            following.clear()


@dataclass(slots=True)
class _Followed:
    """One sequence: its own trie, and where its text stands in both; a state is both endings and a token."""

    shared: SuffixTrie
    matrix: Matrix
    own: SuffixTrie = field(default_factory=SuffixTrie)
    open_runs: deque[int] = field(default_factory=deque)
    ending: Ending = ()
    read: int = 0

    def extend(self, tokens: Sequence[int]) -> None:
        for token in tokens[self.read :]:
            self.own.add(self.open_runs, token)
            self.ending = self.shared.ending(self.ending, token)
        self.read = len(tokens)

    def state(self, newest: int) -> State:
        runs = len(self.open_runs)
        return tuple((runs - n, node) for n, node in enumerate(self.open_runs)), self.ending, newest

    def candidates(self, state: State) -> Candidates:
        tries = (self.own, state[0]), (self.shared, state[1])
        levels = [(length, node, trie) for trie, ending in tries for length, node in ending]
        levels = [level for level in levels if level[2].followed(level[1])]
        levels.sort(key=lambda level: -level[0])
        heard = [(length, trie.counts(node)) for length, node, trie in levels[:LEVELS]]
        return backed_off(heard, self.matrix.rows.get(state[2]))

    def after(self, state: State, token: int) -> State:
        return self.own.ending(state[0], token), self.shared.ending(state[1], token), token


class SuffixDrafter:
    """Guesses from this sequence and from the tenant's earlier outputs.

    Args:
        most: tokens of earlier outputs that are kept for a tenant.
        recycling: with the model's own earlier rows where no match says enough (`recycling.py`).
    """

    def __init__(self, *, most: int = 1 << 20, recycling: bool = False, noise_aware: bool = True) -> None:
        self.top = WIDTH if recycling else 0
        self._most, self._expansion = most, Expansion(noise_aware=noise_aware)
        self._matrices: dict[str, Matrix] = {}
        self._tries: dict[str, SuffixTrie] = {}
        self._followed: dict[int, _Followed] = {}

    def propose(self, context: Context, budget: Budget, noise: FutureNoise) -> DraftTree:
        """As `Drafter`."""
        trie = self._tries.setdefault(context.tenant, SuffixTrie(self._most))
        matrix = self._matrices.setdefault(context.tenant, Matrix())
        followed = self._followed.setdefault(context.key, _Followed(trie, matrix))
        followed.extend(context.tokens)
        return self._expansion.grow(context, followed, followed.state(context.tokens[-1]), budget, noise)

    def observe(self, context: Context, emitted: Sequence[int], verified: Verified | None) -> None:
        """As `Drafter`."""
        self._expansion.learn(context, emitted)
        if self.top and verified is not None:
            self._matrices.setdefault(context.tenant, Matrix()).learn(verified, context.temperature)

    def forget(self, context: Context) -> None:
        """As `Drafter`; its output is remembered for the tenant's later requests."""
        self._followed.pop(context.key, None)
        self._expansion.forget(context)
        trie = self._tries.setdefault(context.tenant, SuffixTrie(self._most))
        trie.remember(context.tokens[context.prompt_tokens :])
