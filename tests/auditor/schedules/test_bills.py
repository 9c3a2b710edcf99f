"""Bills against a provider's own: padding convicts, habits and luck do not, however often one looks."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from scipy.special import betaln, comb

from auditor.reference.demo.prompts import TARGET
from auditor.reference.tokenizer import Tokenizer
from auditor.schedules.bills import LEAST_FIRST, TOLERATED, Bills, bill_test, log_l
from auditor.schedules.judging import BILL, bills_part, bills_said, counted_log_e, judge_period
from auditor.schedules.policy import parse_policy
from auditor.schedules.standing import PeriodEvidence, standing
from auditor.token_counts.unaccounted import unaccounted
from auditor.trace import Usage
from tests.auditor.schedules.weeks import POLICY, Demo, parsed

ALPHA = 0.001
STRICT = parse_policy(POLICY, "acme")
PART = bills_part(STRICT)
DOCUMENT = {"verdict": "consistent", "reasons": [], "errors": [], "groups": []}


def weeks(*excesses):
    return [Bills(tuple(float(excess) for excess in week)) for week in excesses]


def stands(bills, **options):
    periods = [PeriodEvidence(n, -1.0, bills=one, **options) for n, one in enumerate(bills, 1)]
    return standing(periods, bills_part=PART, by_margins=False)


HONEST = [[0] * 13] * 8


def test_padding_from_week_nine_convicts_in_week_nine_and_says_so():
    assert not stands(weeks(*HONEST)).accuses(ALPHA)
    found = stands(weeks(*HONEST, [11] * 13))
    assert found.accuses(ALPHA)
    assert found.accuses_by_bills(ALPHA)
    assert not found.accuses_by_replay(ALPHA)
    assert (found.since, found.bills.responses, found.bills.beyond, found.bills.allowed) == (9, 13, 13, 3)
    judged = judge_period(STRICT, found, DOCUMENT)
    assert judged.verdict == "inconsistent"
    assert judged.causes == ((BILL, 1.0),)
    assert "13 of 13 responses since period 9 bill more than 3 tokens" in judged.reasons[0]


@pytest.mark.parametrize(("share", "honest", "needed"), [(0.5, 8, 4), (0.3, 26, 7)])
def test_padding_of_some_responses_convicts_after_a_few_weeks(share, honest, needed):
    generator = np.random.default_rng(0)
    periods = weeks(*[[0] * 13] * honest)
    for _ in range(needed):
        periods += weeks(11 * (generator.random(13) < share))
    assert stands(periods).accuses(ALPHA)


@pytest.mark.parametrize("habit", [1, TOLERATED])
@pytest.mark.parametrize("week", [2, 5, 20])
def test_a_new_habit_within_the_tolerance_never_accuses(habit, week):
    periods = weeks(*[[0, 1] * 6 if n < week else [habit, habit] * 6 for n in range(1, 40)])
    assert all(not stands(periods[:n]).accuses(0.5) for n in range(1, 40))


def test_too_few_responses_say_nothing_and_it_is_told_what_could_have_been_shown():
    few = weeks([0] * (LEAST_FIRST - 1), [11] * 50)
    assert stands(few).bills.since == 0
    quiet = stands(weeks([0] * LEAST_FIRST, [0] * 13))
    assert bills_said(STRICT, quiet)["shown"]
    assert not bills_said(STRICT, quiet)["accuse"]
    assert not bills_said(STRICT, stands(weeks([0] * LEAST_FIRST, [0])))["shown"]


@pytest.mark.parametrize(("n", "r"), [(20, 0), (20, 1), (80, 4), (640, 32)])
def test_the_process_has_mean_one_and_grows_with_every_response_beyond(n, r):
    for m in (1, 7, 40):
        x = np.arange(m + 1)
        chance = comb(m, x) * np.exp(betaln(r + 1 + x, n - r + m - x) - betaln(r + 1, n - r))
        assert chance.sum() == pytest.approx(1.0, rel=1e-9)
        assert (chance * np.exp(log_l(n, r, m, x))).sum() == pytest.approx(1.0, rel=1e-9)
        assert all(low < high for low, high in pairwise(log_l(n, r, m, x)))


def test_honest_bills_of_the_worst_kind_are_accused_no_more_often_than_alpha():
    """Ties and a tail, a habit that grows to the tolerance, and samples that are the larger the more is odd."""
    generator, alpha, providers, accused = np.random.default_rng(7), 0.2, 60, 0
    for _ in range(providers):
        periods, size = [], 4
        for week in range(1, 17):
            law = generator.geometric(0.3, size) - 1 + (TOLERATED if week > 6 else 0)
            periods += weeks(law)
            size = 12 if law.max() < 5 else 3
            if bill_test(periods).log_e >= -math.log(alpha):
                accused += 1
                break
    assert accused <= alpha * providers


def test_hidden_tokens_only_ever_lower_the_evidence():
    plain = weeks(*HONEST, [11] * 13)
    odd = weeks(*HONEST, [11] * 13 + [math.inf])
    assert stands(plain).accuses(ALPHA)
    assert stands(odd).bills.log_e < 0.0
    assert stands(odd).bills.beyond == 0
    assert bill_test(weeks([math.inf] * 30, [11] * 13)).log_e < 0.0
    one = weeks([0] * 19 + [math.inf], [11] * 13)
    assert bill_test(one).log_e < bill_test(weeks([0] * 20, [11] * 13)).log_e


def test_an_overturned_period_makes_its_habit_the_new_one():
    bills = weeks(*HONEST, *[[8] * 13] * 4)
    found = [PeriodEvidence(n, -1.0, bills=one, void=n == 9) for n, one in enumerate(bills, 1)]
    cleared = standing(found, bills_part=PART, by_margins=False)
    assert stands(bills).accuses(ALPHA)
    assert not cleared.accuses(ALPHA)
    assert cleared.bills.since >= 11
    padded = PeriodEvidence(13, -1.0, bills=weeks([19] * 13)[0])
    assert standing([*found, padded], bills_part=PART, by_margins=False).accuses(ALPHA)


def test_bills_have_their_part_of_alpha_and_take_none_where_they_do_not_count():
    assert pytest.approx(1 / len(STRICT.counts)) == PART
    without = replace(STRICT, counts=("token-difr",))
    assert bills_part(without) == 0.0
    padded = [PeriodEvidence(n, 1.0, bills=one) for n, one in enumerate(weeks(*HONEST, [11] * 13), 1)]
    assert standing(padded, by_margins=False).by_bills < -100.0
    both = standing(padded, by_margins=False, bills_part=PART)
    alone = standing(padded, by_margins=False)
    assert both.by_replay == pytest.approx(alone.by_replay + math.log(1.0 - PART))


def test_replays_and_bills_that_both_accuse_share_the_weight():
    found = [PeriodEvidence(n, 50.0, bills=one) for n, one in enumerate(weeks(*HONEST, [11] * 13), 1)]
    both = standing(found, by_margins=False, bills_part=PART)
    judged = judge_period(STRICT, both, DOCUMENT, accumulated=(("kv/fp8", 0.9),))
    assert judged.causes == ((BILL, 0.5), ("kv/fp8", 0.45))
    assert len(judged.reasons) == 2


def test_the_verdicts_own_test_of_bills_counts_for_nothing():
    group = {"evidence": [{"name": "token-count", "e_value": 1e12}], "profile": {"id": "p"}}
    quiet = {"name": "token-difr", "e_value": 0.5}
    assert counted_log_e({"groups": [group]}, STRICT) is None
    with_it = {"groups": [group | {"evidence": [*group["evidence"], quiet]}]}
    assert counted_log_e(with_it, STRICT) == pytest.approx(math.log(0.5 / (len(STRICT.counts) - 1)))


@pytest.fixture(scope="module")
def served():
    return parsed(Demo("acme"), 1, 1, 40)[0], Tokenizer.load(TARGET)


def test_only_what_neither_ids_nor_text_hold_is_unaccounted_for(served):
    trace, tokenizer = served
    tokens = len(trace.output_token_ids)

    def found(**changes):
        return unaccounted(replace(trace, **changes), tokenizer)

    def billed(count, **usage):
        return replace(trace.usage, completion_tokens=count, **usage)

    assert (found().excess, found().hidden) == (0, False)
    assert found(usage=billed(tokens + 5)).excess in {5, 6}
    assert found(usage=billed(tokens - 5)).excess == 0
    assert found(usage=billed(tokens + 5, reasoning_tokens=5)).excess == 0
    assert found(usage=billed(tokens + 200)).hidden
    assert found(output_token_ids=trace.output_token_ids[:-4]).excess <= 1, "the text accounts for lost ids"
    assert found(text=trace.text[: len(trace.text) // 2]).excess == 0, "the ids account for a cut text"
    for unknown in (
        {"usage": Usage()},
        {"output_token_ids": None},
        {"text": None},
        {"finish_reason": "tool_calls"},
        {"sampling": replace(trace.sampling, stop=("\n",))},
    ):
        assert found(**unknown) is None
