"""Error rates over many audits: a family-wise promise for accusations, a discovery rate for lists."""

from __future__ import annotations

import math

import numpy as np
import pytest

from auditor.errors import OptionError
from auditor.ledger import Ledger, e_bh


def honest_log_es(generator, shape, size=2.0):
    """Log e-values of honest providers, some of them large: exact expectation 1."""
    return size * generator.normal(size=shape) - size**2 / 2


def test_levels_never_add_up_to_more_than_alpha():
    ledger = Ledger(0.01)
    for number in range(2000):
        ledger, entry = ledger.opened(f"provider {number}")
        assert entry.number == number + 1
    assert 0.0099 < ledger.spent < 0.01
    assert ledger.entries[0].alpha == pytest.approx(0.01 * 6 / math.pi**2)


def test_no_honest_provider_is_ever_accused_more_often_than_alpha():
    generator = np.random.default_rng(0)
    alpha, runs, accused = 0.1, 2000, 0
    ledger = Ledger(alpha)
    entries = []
    for number in range(50):
        ledger, entry = ledger.opened(str(number))
        entries.append(entry)
    # one shared draw in each run: audits that all depend on the same calibration
    log_es = honest_log_es(generator, (runs, 1)) + np.zeros((runs, 50))
    own = honest_log_es(generator, (runs, 50))
    for row in np.where(np.arange(50) % 2, log_es, own):
        accused += any(entry.accuses(log_e) for entry, log_e in zip(entries, row, strict=True))
    assert accused / runs <= alpha


@pytest.mark.parametrize("shared", [False, True])
def test_e_bh_keeps_the_share_of_false_calls(shared):
    generator = np.random.default_rng(1)
    alpha, honest, cheating = 0.2, 20, 5
    shares, found = [], []
    for _ in range(1500):
        null = honest_log_es(generator, 1 if shared else honest) * np.ones(honest)
        called = e_bh([*null, *generator.normal(6.0, 2.0, cheating)], alpha)
        wrong = sum(i < honest for i in called)
        shares.append(wrong / max(len(called), 1))
        found.append((len(called) - wrong) / cheating)
    assert np.mean(shares) <= alpha
    assert np.mean(found) > 0.5


def test_e_bh_by_hand():
    assert e_bh([], 0.1) == ()
    assert e_bh([math.log(9.0), 0.0], 0.1) == ()
    assert e_bh([math.log(21.0), 0.0], 0.1) == (0,)
    assert e_bh([math.log(11.0), math.log(12.0)], 0.1) == (0, 1)  # together, where neither is alone
    with pytest.raises(OptionError):
        e_bh([1.0], 1.0)
    with pytest.raises(OptionError):
        Ledger(0.0)
