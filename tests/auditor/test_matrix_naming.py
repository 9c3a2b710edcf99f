"""The matrix's diagnoses and its disjoint honest audits, on the demo model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from auditor.commands.matrix import provider_of
from auditor.diagnosis.causes import OTHER
from auditor.diagnosis.hypotheses import candidates, further_candidates
from auditor.diagnosis.replaying import counted
from auditor.matrix import Memory, Settings, honest_audits, measure_row, naming, naming_served
from auditor.matrix.naming import Naming, looked_at
from auditor.matrix.summary import diagnosed
from auditor.reference.deviations import CATALOGUE, HONEST
from auditor.reference.request import Replayed

ROWS = ("seed/wrong", "temperature/+0.1", "weights/int4-g128")
ASKED = ("honest", "seed/wrong", "temperature/+0.1", "weights/int4", "kv/int4")


@pytest.fixture(scope="module")
def provider():
    made = provider_of(None, None, "bfloat16", 32, 16)
    made.shadow_tokens = 200
    return made


@pytest.fixture(scope="module")
def claims(provider):
    rows = {name: measure_row(provider, CATALOGUE[name]) for name in ROWS}
    return {name: {n: r.claimed.tolist() for n, r in enumerate(row.requests)} for name, row in rows.items()}


def test_every_token_is_scored_once_as_one_by_one(provider, claims):
    """Rows share what a hypothesis expects: the same counts as a replay of each row alone."""
    log = [0, 3]
    own = Naming(provider, "sampled")
    given = {name: own._fingerprints(log, CATALOGUE[name]) for name in ROWS}
    told = own._declared(log, claims, given)
    batch = own._replayed(log, claims, [[CATALOGUE["temperature/+0.1"]]], told, given)
    pool = provider.pool("sampled")
    for name in ROWS:
        for place, number in enumerate(log):
            request = pool.asked[number][0]
            hotter = CATALOGUE["temperature/+0.1"].sampling(request.spec)
            alone = Replayed(replace(request, spec=hotter), 4096, np.array(claims[name][number]))
            state = next(iter(provider.states([pool.asked[number]], HONEST, provider.reference.model)))
            alone.score(provider.reference.model.logits(state), slice(0, len(state)))
            assert batch[name]["temperature/+0.1"].counts[place] == counted(alone.stats)


def test_a_row_s_fingerprints_are_of_the_states_that_it_computes(provider, claims):
    """Nearest to the hypothesis that is the row's own, and the declared ones where only its tokens differ."""
    log = [0, 3]
    own, rows = (
        Naming(provider, "sampled"),
        {name: claims[name] for name in ("seed/wrong", "weights/int4-g128")},
    )
    given = {name: own._fingerprints(log, CATALOGUE[name]) for name in rows}
    told = own._declared(log, rows, given)
    passes = [[CATALOGUE["weights/int4-g128"]], [CATALOGUE["kv/int4"]]]
    replayed = own._replayed(log, rows, passes, told, given)
    for place in range(len(log)):
        far = {
            name: {"declared": told[name][place].far.mean()}
            | {cause: one.far[place].mean() for cause, one in replayed[name].items()}
            for name in rows
        }
        assert min(far["seed/wrong"], key=far["seed/wrong"].get) == "declared"
        assert min(far["weights/int4-g128"], key=far["weights/int4-g128"].get) == "weights/int4-g128"


def test_a_provider_of_now_and_then_sends_honest_fingerprints_in_between(provider):
    log = [0, 1]
    own = Naming(provider, "sampled")
    partly = own._fingerprints(log, CATALOGUE["partly/int4-in-half"])
    honest = own._fingerprints(log, HONEST)
    whole = own._fingerprints(log, CATALOGUE["weights/int4"])
    assert np.array_equal(partly[0].coded.levels, whole[0].coded.levels)
    assert np.array_equal(partly[1].coded.levels, honest[1].coded.levels)
    smaller = own._fingerprints(log, CATALOGUE["partly/draft-when-certain"])
    assert 0.1 < np.mean((smaller[0].coded.levels == honest[0].coded.levels).all(axis=1)) < 0.9


def test_causes_are_named_and_without_their_own_entry_their_relatives_are(provider, claims, monkeypatch):
    few = [hypothesis for hypothesis in candidates() if hypothesis.name in ASKED]
    wider = [hypothesis for hypothesis in further_candidates() if hypothesis.name == "weights/int4-g128"]
    monkeypatch.setattr(naming, "candidates", lambda: few)
    monkeypatch.setattr(naming, "further_candidates", lambda: wider)
    found = Naming(provider, "sampled").named(claims)
    logs = len(looked_at(16))
    for name in ROWS:
        assert [cause for cause, _ in found[name]["named"]] == [name] * logs
        assert all(cause != name for cause, _ in found[name]["unlisted"])
    together = diagnosed([{"name": name, "diagnosis": found[name]} for name in ROWS], "named")
    assert (together["right"], together["logs"]) == (3 * logs, 3 * logs)
    assert together["confusion"]["seed"] == {"seed": logs}


def test_a_row_that_decodes_by_itself_is_named_by_its_own_outputs(provider, monkeypatch):
    few = [hypothesis for hypothesis in candidates() if hypothesis.name in ASKED]
    monkeypatch.setattr(naming_served, "candidates", lambda: few)
    monkeypatch.setattr(naming_served, "further_candidates", lambda: [CATALOGUE["weights/int4-g128"]])
    rows = {
        name: measure_row(provider, CATALOGUE[name]) for name in ("acceptance/typical", "accounting/splits")
    }
    claims = {name: {n: r.claimed.tolist() for n, r in enumerate(row.requests)} for name, row in rows.items()}
    found = naming_served.named_served(provider, "sampled", claims)
    logs = len(looked_at(16))
    assert [cause for cause, _ in found["acceptance/typical"]["named"]] == ["acceptance/drafted"] * logs
    for name in rows:
        assert len(found[name]["unlisted"]) == logs
        assert all(cause != "acceptance/drafted" for cause, _ in found[name]["unlisted"])
    assert all(cause != "acceptance/drafted" for cause, _ in found["accounting/splits"]["named"])


def test_now_and_then_is_named_as_what_it_is_then():
    rows = [
        {"name": "partly/int4-in-half", "diagnosis": {"named": [["weights/int4", 1.0], ["kv/int4", 0.9]]}},
        {"name": "attention/uniform-in-one-layer", "diagnosis": {"named": [[OTHER, 1.0]]}},
        {"name": "weights/int8"},  # not caught, so nothing is said of it
    ]
    found = diagnosed(rows, "named")
    assert (found["right"], found["logs"]) == (1, 3)
    assert found["confusion"] == {"attention": {"other": 1}, "weights": {"kv": 1, "weights": 1}}
    acting = {name for name in CATALOGUE if name.startswith("partly/")}
    assert set(naming.ACTS_AS) == acting


def test_further_candidates_are_others_that_can_be_replayed():
    names = {d.name for d in further_candidates()}
    assert not names & {d.name for d in candidates()}
    assert {"weights/int4-g128", "kv/h2o-32", "attention/uniform-in-one-layer"} <= names
    assert not names & {"partly/int4-in-half", "sampler/runner-up-1%", "seed/position-off-by-one"}


def test_honest_audits_are_fresh_and_go_on_where_they_were(provider, tmp_path, monkeypatch):
    monkeypatch.setattr(honest_audits, "BLOCK", 2)
    monkeypatch.setattr(honest_audits, "CALIBRATION", 24)
    monkeypatch.setattr(honest_audits, "TOKENS", 6)
    asked = []
    serve = provider.serve
    monkeypatch.setattr(provider, "serve", lambda *what: asked.append(what) or serve(*what))
    kept = Memory(tmp_path / "rows.jsonl", Settings("m", "r", "r", 16, 0.01, "code"))
    found = honest_audits.honest_audits(provider, 4, kept)
    assert found["audits"] == 4
    assert found["convicted"]["0.01"]["audits"] == 0
    assert 0.5 < found["convicted"]["0.01"]["bound"] < 0.53  # 1 - 0.05 ** (1 / 4)
    assert len({seed for _, seed, _ in asked}) == len(asked) == 4
    again = Memory(tmp_path / "rows.jsonl", Settings("m", "r", "r", 16, 0.01, "code"))
    assert honest_audits.honest_audits(provider, 4, again) == found
    assert len(asked) == 4
