"""Independent calls side by side: results in order, errors in place, and the threads as they were."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from auditor.reference.side_by_side import side_by_side


def test_results_come_in_order_while_calls_overlap():
    meeting = threading.Barrier(3, timeout=30)

    def work(share):
        if share < 3:
            meeting.wait()  # passes only when three run at once
        time.sleep(0.01 * (3 - share % 3))
        return share * share

    assert list(side_by_side(work, range(7), 3)) == [(n, n * n) for n in range(7)]


def test_an_error_comes_at_the_place_of_its_share_and_threads_are_put_back():
    before = torch.get_num_threads()

    def work(share):
        if share == 2:
            raise ValueError("share two")
        return torch.get_num_threads()

    results = side_by_side(work, range(50), 2)
    assert [next(results), next(results)] == [(0, 1), (1, 1)]
    with pytest.raises(ValueError, match="share two"):
        next(results)
    assert torch.get_num_threads() == before


def test_a_reader_who_leaves_early_stops_what_is_queued():
    started = []

    def work(share):
        started.append(share)
        return share

    results = side_by_side(work, iter(range(10_000)), 2)
    assert next(results) == (0, 0)
    results.close()
    assert len(started) < 10


def test_a_single_share_has_all_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert list(side_by_side(lambda _: torch.get_num_threads(), [0], 2)) == [(0, 2)]
    finally:
        torch.set_num_threads(before)
