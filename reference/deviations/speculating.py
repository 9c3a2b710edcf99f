"""Providers that speculate by another rule than they say, or by the right one and wrongly.

They decode by themselves (`acceptance/play.py`), with a draft model's chains of four, and declare plain
sampling: what they return is scored as any log. `acceptance/ratio` and `acceptance/k-seq` follow the model's
distribution and are no fraud where they are declared; undeclared, they are not the tokens of the seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from auditor.reference.deviations.acceptance.multi_draft import KSeq
from auditor.reference.deviations.acceptance.play import Bug, play
from auditor.reference.deviations.acceptance.rules import RULES, Acceptance
from auditor.reference.deviations.base import Deviation, Ids, Serving

_QUICK = "more of the draft model's tokens stand: fewer passes of the large one"
_BENIGN = "a lossless speed-up that has to be declared: another token of the same distribution"
_BUG = "none: a bug of speculation in batches"


def _plays(
    rule: Acceptance, *, bug: Bug | None = None, drafts: int = 4
) -> Callable[[Serving], Sequence[Ids]]:
    def serves(serving: Serving) -> list[Ids]:
        draft = serving.other or serving.target
        asks = (replace(ask, draft_tokens=drafts) for ask in serving.asks)
        return [play(serving.target, draft, ask, rule, bug=bug).output for ask in asks]

    return serves


def _rule(rule: str, name: str, source: str, gain: str = _QUICK) -> Deviation:
    return Deviation(
        f"acceptance/{name}", gain, source, serves=_plays(RULES[rule]), timing="periodic", decodes=False,
        needs_noise=True,
    )  # fmt: skip


def _bug(bug: Bug, name: str, source: str, *, needs_penalty: bool = False) -> Deviation:
    return Deviation(
        f"acceptance/{name}", _BUG, source, serves=_plays(RULES["exact"], bug=bug), timing="periodic",
        decodes=False, needs_penalty=needs_penalty,
    )  # fmt: skip


_EXSPEC = "EXSPEC, arXiv 2510.22876 (eBay/spec_dec), invariant "
DEVIATIONS = (
    _rule("ratio", "ratio", "Leviathan et al., arXiv 2211.17192", _BENIGN),
    Deviation("acceptance/k-seq", _BENIGN, "SpecTr, arXiv 2310.15141 (4 drafts a position)",
              serves=_plays(KSeq(), drafts=1), timing="periodic", decodes=False, needs_noise=True),
    _rule("lenience", "lenient-0.5", "Leviathan et al., arXiv 2211.17192, appendix (l 0.5)"),
    _rule("target-thresholds", "target-thresholds-0.5", "SGLang speculative-accept-threshold 0.5"),
    _rule("relaxed-top-n", "relaxed-top-10", "TensorRT-LLM relaxed acceptance (N 10, delta 0.6)"),
    _rule("typical", "typical", "Medusa, arXiv 2401.10774 (epsilon 0.09, delta 0.3)"),
    _rule("deferred", "deferred-mismatch", "FLy, arXiv 2511.22972"),
    _rule("synthetic", "synthetic", "vLLM's and SGLang's benchmark switch left on"),
    _rule("blind-trust", "blind-trust-0.9", "HAMburger, arXiv 2505.20438 (confidence 0.9)"),
    _rule("token-routing", "token-routing", "R2R, arXiv 2505.21600 (entropy 0.45)"),
    _rule("step-routing", "step-routing", "RSD, arXiv 2501.19324; Arbitrage, arXiv 2512.05033"),
    _rule("reflective", "reflective", "Reflective verification, arXiv 2505.18629 (bonus 1)"),
    _rule("mixture", "mixture", "CoRE, arXiv 2510.13855 (sharpness 2)", "another model's opinion for free"),
    _rule("cascade", "cascade-0.05", "fuzzy speculation (Jensen-Shannon divergence below 0.05 nats)"),
    _rule("inside-clip", "inside-clip-0.5",
          "DiFR, arXiv 2511.20621: its margins are clipped at 0.5, and the provider knows the seed"),
    _bug("position-after-rejection", "bug-position", _EXSPEC + "I1: off by one after a rejection"),
    _bug("stale-keys", "bug-stale-keys", _EXSPEC + "I3: keys of a rejected draft stay"),
    _bug("bonus-keys-missing", "bug-bonus-keys", _EXSPEC + "I4: the last token's keys are missing"),
    _bug("penalised-drafts", "bug-penalised-drafts", _EXSPEC + "I5: rejected drafts count for penalties",
         needs_penalty=True),
    _bug("pad-attended", "bug-pad-attended", _EXSPEC + "I6: a padding id is attended to"),
)  # fmt: skip
