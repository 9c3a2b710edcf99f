"""The demo's page is one file that needs nothing else, and traces cannot write markup into it."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from auditor.demonstration import Exhibit, Sizes, demo
from auditor.errors import OutputExistsError, TraceFileError
from auditor.noise_model import RequestCounts, bin_of
from auditor.page import check_place, profile_place, render_page, write_page
from auditor.page_figures import exceedance
from auditor.profile import read_profile

VOID = {"meta", "br", "link", "img", "input", "hr"}


@pytest.fixture(scope="module")
def demonstration():
    sizes = Sizes(calibration_requests=6, honest_requests=4, dishonest_requests=3, shadow_tokens=120)
    return demo(seed=5, sizes=sizes, causes=("honest", "weights/int4", "seed/wrong"))


@pytest.fixture(scope="module")
def page(demonstration):
    return render_page(demonstration, "demo.profile.json")


class _Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.extend((tag, name, value or "") for name, value in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.extend((tag, name, value or "") for name, value in attrs)

    def handle_endtag(self, tag):
        assert self.open, tag
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parsed(page):
    tags = _Tags()
    tags.feed(page)
    tags.close()
    assert tags.open == []
    return tags


def test_every_tag_is_closed_and_the_page_says_what_it_is(page):
    tags = parsed(page)
    assert ("html", "lang", "en") in tags.attributes
    assert tags.tags.count("title") == 1
    assert tags.tags.count("h1") == 1
    assert page.startswith("<!DOCTYPE html>")


def test_nothing_outside_the_file_is_referred_to(page):
    tags = parsed(page)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form"} & set(tags.tags)
    assert "http" not in page
    assert "@import" not in page
    assert all(reference.startswith("#") for reference in re.findall(r"url\(([^)]*)\)", page))
    links = [value for _, name, value in tags.attributes if name.endswith(("href", "src"))]
    assert all(link.startswith("#") for link in links)
    assert not [name for _, name, _ in tags.attributes if name.startswith("on")]


def test_ids_are_unique_and_every_reference_finds_its_own(page):
    tags = parsed(page)
    ids = [value for _, name, value in tags.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    wanted = {v for _, name, v in tags.attributes if name == "aria-labelledby"}
    wanted |= {v[1:] for _, name, v in tags.attributes if name == "href"}
    wanted |= {v[1:] for v in re.findall(r"url\(([^)]*)\)", page)}
    assert wanted <= set(ids)


def test_every_plot_has_words_and_the_colours_follow_the_theme(page):
    drawings = re.findall(r'<div class="plot[^>]*>(<svg.*?</svg>)\s*</div>', page, flags=re.DOTALL)
    labels = re.findall(r'<div class="plot[^>]*aria-label="([^"]*)"', page)
    assert len(drawings) == page.count("<svg") == len(labels) == 3
    assert all("honest" in label for label in labels)
    for drawing in drawings:
        ET.fromstring(drawing)
        assert "var(--" in drawing
        assert not re.search(r"#0[0-9a-c]0[0-9a-c]0[0-9a-c]\b", drawing)
    assert page.count("<figcaption>") == page.count("<figure>") == 3


def test_hostile_text_from_traces_is_only_text(demonstration):
    hostile = '<script>alert("1")</script>{{ 7 * 7 }}\'"><img src=x onerror=alert(1)>'
    key = replace(demonstration.profile.key, model_digest=hostile, provider_recipe=hostile)
    audits = tuple(replace(a, cause=hostile + a.cause, really_ran=hostile) for a in demonstration.audits)
    attacked = replace(
        demonstration,
        model=hostile,
        audits=audits,
        profile=replace(demonstration.profile, key=key),
        power={hostile: (1.0,) * 6},
        exhibit=Exhibit(audits[1], hostile, hostile, ((hostile, None), (hostile, 0.5)), 9.0),
    )
    page = render_page(attacked, hostile)
    tags = parsed(page)
    assert not {"script", "img"} & set(tags.tags)
    assert not [name for _, name, _ in tags.attributes if name.startswith("on")]
    assert '<script>alert("1")</script>{{ 7 * 7 }}' in "".join(tags.text)
    assert "49" not in "".join(tags.text).split("Model sold")[1].split("sha256")[0]


def test_writing_replaces_an_earlier_demo_and_nothing_else(tmp_path, demonstration):
    place = tmp_path / "demo.html"
    write_page(place, demonstration)
    write_page(place, demonstration)
    assert read_profile(profile_place(place)).id == demonstration.profile.id
    assert sorted(p.name for p in tmp_path.iterdir()) == ["demo.html", "demo.profile.json"]
    precious = tmp_path / "thesis.html"
    precious.write_text("years of work")
    with pytest.raises(OutputExistsError):
        check_place(precious)
    profile_place(tmp_path / "new.html").write_text("{}")
    with pytest.raises(OutputExistsError):
        check_place(tmp_path / "new.html")
    with pytest.raises(TraceFileError):
        check_place(tmp_path / "nowhere" / "demo.html")


def test_exceedance_falls_from_the_mismatch_rate_to_nothing():
    low, high = bin_of(np.array([0.01, 2.0])).tolist()
    request = RequestCounts(tokens=100, matched={high: 95}, missed={(low, low): 4, (low, high): 1})
    margins, share = exceedance([request])
    assert share[0] == pytest.approx(0.05)
    assert share[np.searchsorted(margins, 0.5)] == pytest.approx(0.01)
    assert share[-1] == 0.0
    assert (np.diff(share) <= 0.0).all()
