"""What a report says: the schema, the verdict of a period, controls, grades, sampling, changes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import cache
from importlib.resources import files

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import hypergeom
from sqlalchemy import insert, select, update

from auditor.errors import OptionError
from auditor.reports import AuditRow, Policy, Sample, Scope, TraceTally, build_report, parse_policy, tally
from auditor.reports.canonical import canonical, decimal
from auditor.reports.coverage import least_met, missed_probability
from auditor.reports.grading import GRADES, RULES, grade
from auditor.store_schema import audit, job, sample
from tests.auditor.reports.recorded_rows import MONDAY, WEEK

SALT = bytes(32)


@cache
def schema():
    return json.loads((files("auditor.reports") / "schema" / "report-v1.json").read_text())


def valid(document):
    jsonschema.Draft202012Validator(schema()).validate(document)
    return document


def report(*audits, policy=None, previous=None, provider=""):
    scope = Scope("rep_" + "0" * 32, "ten_1", provider, MONDAY, MONDAY + WEEK)
    return valid(dict(build_report(scope, audits, policy or Policy(), salt=SALT, previous=previous).document))


def traces(count, **more):
    base = {
        "id": "r",
        "grade": "B",
        "verdict": "consistent",
        "tokens": 100,
        "e_value": 0.1,
        "commitment": None,
    }
    return tally((n, base | {"id": f"r{n}"} | more) for n in range(count))


def verdict(outcome="consistent", e_value=1e-3, *, power=1.0, alpha=0.001, fractions=None, **more):
    group = {
        "provider_recipe": "p",
        "verdict": outcome,
        "alpha": alpha,
        "evidence": [{"name": "token-difr"}],
        "detectable": [{"cause": c, "power": power, "required": True} for c in Policy().must_detect],
        "diagnosis": [],
        "profile": {"id": "sha256:p", "honest_tokens": 9, "signed_by": []},
        "fractions": fractions,
    }
    return {
        "verdict": outcome,
        "e_value": e_value,
        "model": {"digest": "sha256:" + "a" * 64, "recipe": "r"},
        "groups": [group | more],
        "errors": [],
        "selection": None,
    }


def audited(number=0, *, requests=10, provider="acme", said=None, **more):
    row = AuditRow(
        f"aud_{number:032x}",
        provider,
        MONDAY + number,
        {"alpha": 0.001},
        f"sha256:{number:064x}",
        "done",
        judged=MONDAY + number + 1,
        verdict_digest="sha256:" + "b" * 64,
        verdict=said or verdict(),
    )
    return replace(row, **more), traces(requests)


def only(document):
    (provider,) = document["providers"]
    return provider


def test_recorded_reports_fit_the_published_schema(sqlite):
    for body in sqlite.both_weeks():
        valid(json.loads(body))


def test_the_schema_refuses_doubles_and_unknown_fields():
    document = report(audited())
    for broken in (document | {"more": 1}, document | {"policy": document["policy"] | {"alpha": 0.001}}):
        with pytest.raises(jsonschema.ValidationError):
            valid(broken)


def test_canonical_form_refuses_doubles_and_knows_no_minus_zero():
    with pytest.raises(TypeError, match=r"\$\.a\[1\]"):
        canonical({"a": [1, 0.5]})
    assert decimal(-0.00001) == "0.0000"
    assert canonical({"b": 1, "a": "ü"}) == b'{"a":"\\u00fc","b":1}\n'


def test_the_mean_of_e_values_convicts_and_not_their_number():
    """Twelve audits at alpha each are twelve chances; the period has one."""
    strong = audited(0, said=verdict("inconsistent", 5e3))
    assert only(report(strong))["verdict"] == "inconsistent"
    diluted = only(report(strong, *(audited(n) for n in range(1, 12))))
    assert diluted["verdict"] == "inconclusive"
    assert "1 audit(s) convict by themselves" in diluted["reasons"][0]
    gross = only(report(audited(0, said=verdict("inconsistent", 1e6)), *(audited(n) for n in range(1, 12))))
    assert gross["verdict"] == "inconsistent"


@settings(max_examples=25)
@given(st.lists(st.floats(1e-20, 1e20), min_size=1, max_size=6))
def test_evidence_is_the_mean_however_audits_are_ordered(values):
    found = only(report(*(audited(n, said=verdict(e_value=v)) for n, v in enumerate(values))))
    wanted = math.log10(math.fsum(values) / len(values))
    assert float(found["log10_e"]) == pytest.approx(wanted, abs=0.001)
    turned = only(report(*(audited(n, said=verdict(e_value=v)) for n, v in enumerate(reversed(values)))))
    assert turned["log10_e"] == found["log10_e"]


def test_a_provider_that_its_own_signatures_contradict_is_convicted_whatever_the_mean():
    refuted = audited(0, said=verdict("inconsistent", 1.0))
    found = only(report(refuted, *(audited(n) for n in range(1, 5))))
    assert found["verdict"] == "inconsistent"
    assert {c["id"]: c["status"] for c in found["controls"]}["BIL-1"] == "not-satisfied"


def test_consistent_needs_the_power_that_the_policy_lists():
    found = only(report(audited(said=verdict(power=0.89))))
    assert found["verdict"] == "inconclusive"
    assert found["limited_by"] == "G3"
    wider = Policy(must_detect=(*Policy().must_detect, "kv/int2"))
    assert "kv/int2" in only(report(audited(), policy=wider))["reasons"][0]
    asked = Policy(evidence=("activation",))
    assert "activation" in only(report(audited(), policy=asked))["reasons"][0]


def test_power_is_read_at_the_bar_of_the_period_not_of_the_audit():
    def curve(low):
        points = [[0.5, [0.9, 0.5, 0.1, 0.0]], [1.0, [1.0, low, 0.0, 0.0]]]
        causes = [{"cause": c, "points": points} for c in Policy().must_detect]
        return {"factors": [1, 10, 100, 1000], "causes": causes}

    def week(low):
        return only(report(*(audited(n, said=verdict(fractions=curve(low))) for n in range(10))))

    assert week(0.95)["verdict"] == "consistent"
    assert week(0.85)["verdict"] == "inconclusive"
    assert week(0.95)["detectable"][0]["points"] == [
        {"fraction": "0.5", "power": "0.50"},
        {"fraction": "1", "power": "0.95"},
    ]
    assert only(report(*(audited(n) for n in range(10))))["verdict"] == "inconclusive", (
        "unknown power is none"
    )
    one = only(report(audited(said=verdict(fractions=curve(0.0)))))
    assert one["detectable"][0]["smallest_fraction"] == "0.5"


def test_what_did_not_end_well_is_never_a_pass():
    dead = replace(
        audited(1)[0], state="dead", verdict=None, judged=None, verdict_digest=None, error_code="store"
    )
    found = only(report(audited(), (dead, TraceTally())))
    assert found["verdict"] == "inconclusive"
    late = replace(dead, state="unfinished", error_code=None)
    found = only(report(audited(), (late, TraceTally())))
    assert (found["verdict"], found["grade"]) == ("consistent", "C")
    assert found["limited_by"] == "G5"
    assert {c["id"]: c["status"] for c in found["controls"]}["EVD-1"] == "not-satisfied"


def test_nothing_judged_is_ungraded():
    document = report(provider="acme")
    assert (document["grade"]["letter"], document["verdict"]) == ("U", "inconclusive")
    assert only(document)["reasons"] == ["no audit was judged in the period"]
    assert report()["grade"]["letter"] == "U"


def test_a_conviction_says_nothing_good_about_the_other_controls():
    named = verdict("inconsistent", 1e9, diagnosis=[{"cause": "kv/int4", "weight": 0.9}])
    statuses = {c["id"]: c["status"] for c in only(report(audited(said=named)))["controls"]}
    assert statuses["SYS-1"] == statuses["NUM-1"] == "not-satisfied"
    assert statuses["MOD-1"] == statuses["SMP-1"] == statuses["PRM-1"] == "not-determined"


def test_the_grade_names_the_rule_that_limits_it():
    assert grade([]).letter == "A+"
    for rule in RULES:
        assert grade([rule.id, "G9"]).letter == max(rule.cap, "A", key=GRADES.index)
    signed = {"profile": {"id": "sha256:p", "honest_tokens": 9, "signed_by": ["k"]}}
    points = [{"cause": c, "points": [[0.1, [1.0]], [1.0, [1.0]]]} for c in Policy().must_detect]
    said = verdict(fractions={"factors": [1], "causes": points}, **signed)
    row, _ = audited(said=said)
    assert only(report((row, traces(10, grade="A"))))["grade"] == "A+"
    assert only(report((row, traces(10))))["limited_by"] == "G9"
    assert only(report(audited()))["limited_by"] == "G6"


@given(st.integers(1, 300), st.data())
def test_coverage_is_the_hypergeometric_bound(population, data):
    sampled = data.draw(st.integers(1, population))
    cheated = data.draw(st.integers(1, population))
    wanted = hypergeom.pmf(0, population, cheated, sampled)
    assert missed_probability(population, cheated, sampled) == pytest.approx(wanted, abs=1e-9)
    least = least_met(population, sampled, 0.9)
    assert hypergeom.pmf(0, population, least, sampled) <= 0.1 + 1e-9
    assert least == 1 or hypergeom.pmf(0, population, least - 1, sampled) > 0.1 - 1e-9


def test_sampling_is_stated_and_bounded_only_where_requests_were_drawn_alike():
    uniform = Sample(1000, 44, "uniform/v1", "beacon")
    found = only(report(audited(sample=uniform)))
    assert found["sampling"] == {
        "population_requests": 1000,
        "sampled_requests": 44,
        "methods": ["uniform/v1"],
        "confidence": "0.9",
        "least_requests_met": least_met(1000, 44, 0.9),
        "least_fraction_met": f"{least_met(1000, 44, 0.9) / 1000:.6f}",
    }
    assert found["audits"][0]["sample"]["seed"] == "beacon"
    weighted = only(report(audited(sample=replace(uniform, method="context-weighted/v1"))))
    assert weighted["sampling"]["least_fraction_met"] is None
    assert "G6" in weighted["applying"]


def test_a_sample_row_reaches_the_report(recorded):
    with recorded.store.transaction(writes=True) as connection:
        one = connection.execute(select(audit.c.id).where(audit.c.provider == "acme")).scalars().first()
        values = {"population_requests": 9000, "sampled_requests": 64, "method": "uniform/v1", "seed": "s"}
        connection.execute(insert(sample).values(audit_id=one, **values))
    document = valid(json.loads(recorded.week(0, provider="acme")))
    assert document["scope"] == {"provider": "acme", "providers": ["acme"]}
    assert document["totals"]["population_requests"] == 9000


def test_an_audit_that_died_is_in_the_period_in_which_it_died(recorded):
    with recorded.store.transaction(writes=True) as connection:
        late = select(audit.c.id).where(audit.c.created < MONDAY + WEEK, audit.c.provider == "acme")
        one = connection.execute(late).scalar_one()
        from auditor.store_schema import evidence, verdict

        connection.execute(evidence.delete().where(evidence.c.audit_id == one))
        connection.execute(verdict.delete().where(verdict.c.audit_id == one))
        died = {"state": "dead", "finished": MONDAY + WEEK + 5, "error_code": "store"}
        connection.execute(update(job).where(job.c.audit_id == one).values(**died))
    first, second = (json.loads(body) for body in recorded.both_weeks())
    states = [{a["id"]: a["state"] for p in d["providers"] for a in p["audits"]} for d in (first, second)]
    assert states[0][one] == "unfinished"
    assert states[1][one] == "dead"


def test_changes_and_history_follow_from_report_to_report(sqlite):
    first, second = (json.loads(body) for body in sqlite.both_weeks())
    assert first["changes"] == {"since": None, "items": []}
    assert second["changes"]["since"]["report"] == first["id"]
    moved = {(i["provider"], i["what"]): (i["before"], i["after"]) for i in second["changes"]["items"]}
    assert moved["cheapo", "verdict"] == ("consistent", "inconsistent")
    assert moved["hush", "grade"] == ("B", "F")
    assert [line["report"] for line in second["history"]] == [first["id"]]
    assert {p["name"]: p["verdict"] for p in second["providers"]} == {
        "acme": "consistent",
        "cheapo": "inconsistent",
        "hush": "inconsistent",
    }
    causes = {p["name"]: p["causes"][0]["cause"] for p in second["providers"] if p["causes"]}
    assert causes == {"cheapo": "weights/int4", "hush": "prompt/system"}


def test_policies_round_trip_and_are_refused_in_one_line():
    policy = Policy(name='a"b', approved_by="Jo", alpha=1e-6, evidence=("x",), budget_tokens=7)
    read = parse_policy(policy.toml)
    assert read == replace(policy, source=policy.toml)
    assert read.digest == policy.digest
    for raw in (
        b"",
        b"\xff",
        b'schema = "auditor.report-policy/v1"\nalpha = 2.0',
        b'schema = "auditor.report-policy/v1"\nalpha = "x"',
        b'schema = "auditor.report-policy/v1"\nmore = 1',
        b'schema = "auditor.report-policy/v1"\nmust_detect = [1]',
        b'schema = "auditor.report-policy/v1"\nbudget_tokens = 0',
        b'schema = "auditor.report-policy/v1"\nname = ""',
        b"x" * 200_000,
    ):
        with pytest.raises(OptionError) as caught:
            parse_policy(raw)
        assert "\n" not in str(caught.value)


def test_the_mapping_claims_support_and_names_fields_that_exist():
    document = report(audited())
    assert {row["framework"].split(" ")[0] for row in document["mapping"]} == {"EU", "ISO/IEC", "SOC"}
    for row in document["mapping"]:
        value = document
        for part in row["field"].replace("[]", ".0").split("."):
            value = value[int(part)] if part.isdigit() else value[part]
    assert "compli" not in json.dumps(document["mapping"]).lower()
