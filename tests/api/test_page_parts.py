"""Parts of pages without a service: excerpts, the plot, numbers in words."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditor.api.pages import wording
from auditor.api.pages.evidence_plot import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, evidence_plot
from auditor.api.pages.excerpts import excerpt_of
from auditor.api.pages.signing_in import local_path

PIECES = st.lists(st.tuples(st.sampled_from(["a", "b ", "<i>"]), st.integers(0, 2)), min_size=1, max_size=30)


@given(PIECES, st.integers(0, 40), st.integers(0, 10))
def test_no_hidden_token_is_in_an_excerpt_unless_asked_for(pieces, hidden, start):
    value = {
        "number": 1,
        "id": "x",
        "alone": False,
        "log10_e": 1.0,
        "tokens": start + len(pieces) + 3,
        "misses": 0,
        "hidden": hidden,
        "window": [start, start + len(pieces)],
        "spans": [[start, start + 2]],
        "question": None,
        "pieces": [[start + n, f"{text}{start + n};", weight] for n, (text, weight) in enumerate(pieces)],
    }
    left = excerpt_of(value, show_hidden=False)
    numbers = [int(n) for n in re.findall(r"(\d+);", "".join(run.text for run in left.runs))]
    assert all(number >= hidden for number in numbers)
    told = sum(run.tokens for run in left.runs)
    assert told + len(numbers) == len(pieces)
    assert sum(run.misses for run in left.runs) == sum(
        weight > 0 for n, (_, weight) in enumerate(pieces) if start + n < hidden
    )
    whole = excerpt_of(value, show_hidden=True)
    assert "".join(run.text for run in whole.runs) == "".join(text for _, text, _ in value["pieces"])
    assert (whole.before, whole.after) == (start, 3)


POINTS = st.lists(
    st.tuples(st.integers(1, 500), st.floats(-300, 5000, allow_nan=False)), min_size=1, max_size=20
).map(lambda steps: [[sum(t for t, _ in steps[: n + 1]), e] for n, (_, e) in enumerate(steps)])


@given(st.lists(POINTS, min_size=1, max_size=3), st.sampled_from([0.5, 0.05, 0.001, 1e-9]))
def test_every_mark_of_the_plot_lies_inside_it(curves, alpha):
    plot = evidence_plot([{"recipe": None, "points": points} for points in curves], alpha)
    for line in plot.lines:
        for x, y in re.findall(r"(-?[\d.e+]+),(-?[\d.e+]+)", line.path):
            assert LEFT - 0.1 <= float(x) <= WIDTH - RIGHT + 0.1
            assert TOP - 0.1 <= float(y) <= HEIGHT - BOTTOM + 0.1
    assert TOP <= plot.bar <= HEIGHT - BOTTOM
    assert plot.bar < plot.zero
    heights = [tick.at for tick in plot.up]
    assert heights == sorted(heights, reverse=True)
    assert 2 <= len(plot.across) <= 8 or curves == [[[1, curves[0][0][1]]]]
    for line, points in zip(plot.lines, curves, strict=True):
        assert (line.end[1] <= plot.bar) == line.convicted or abs(line.end[1] - plot.bar) < 0.2, points[-1]


def test_without_a_profile_there_is_no_plot():
    assert evidence_plot([], 0.001) is None
    assert evidence_plot([{"recipe": "r", "points": []}], 0.001) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.0, "1"),
        (0.05, "0.05"),
        (99.0, "99"),
        (4.95e19, "10<sup>19</sup>"),
        (3.1e-5, "10<sup>\N{MINUS SIGN}5</sup>"),
        (1e300, "over 10<sup>300</sup>"),
        (0.0, "below 10<sup>\N{MINUS SIGN}300</sup>"),
    ],
)
def test_e_values_in_words(value, text):
    assert wording.e_value(value) == text


def test_numbers_in_words():
    assert wording.size(1023) == "1,023 bytes"
    assert wording.size(24_900) == "24.3 KiB"
    assert wording.one_in(0.001) == "1 in 1,000"
    assert wording.quantity(1, "request") == "1 request"
    assert wording.quantity(1200, "request") == "1,200 requests"
    assert wording.probability(2e-20) == "2.0e-20"
    assert wording.share(None) == ""
    assert wording.test_name("activation-difr/int8:16") == "Activation fingerprints"
    assert (
        str(wording.moment(0))
        == '<time datetime="1970-01-01T00:00:00.000000Z">1970-01-01 00:00:00 UTC</time>'
    )


@given(st.text(max_size=30))
def test_no_text_leads_off_this_host(text):
    path = local_path(text)
    assert path.startswith("/")
    assert not path.startswith(("//", "/\\"))
    assert not re.search(r"[\x00-\x20\x7f\\]", path)
