"""What a report can become: OSCAL, JUnit, rows, a page, a PDF. And the command line."""

from __future__ import annotations

import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import jsonschema
import pyarrow.parquet as pq
import pytest
import regex
from click.testing import CliRunner
from pypdf import PdfReader

from auditor.commands import cli
from auditor.errors import OptionError, OutputExistsError
from auditor.key_files import write_key
from auditor.reports.canonical import digest
from auditor.reports.html import render_report
from auditor.reports.junit import report_to_junit
from auditor.reports.oscal import report_to_oscal
from auditor.reports.pdf import render_pdf
from auditor.reports.row_export import write_rows
from tests.auditor.reports.recorded_rows import kept_logs, key_of, load, signed_log
from tests.auditor.reports.test_report_content import audited, report, verdict

VECTORS = Path(__file__).parents[2] / "vectors"
OSCAL = json.loads((VECTORS / "oscal" / "oscal_assessment-results_schema.json").read_text())


@pytest.fixture(scope="module")
def weeks(tmp_path_factory):
    found = load(f"sqlite:///{tmp_path_factory.mktemp('weeks') / 'rows.sqlite3'}")
    yield found, [(json.loads(body), digest(body)) for body in found.both_weeks()]
    found.store.close()


def oscal_validator():
    """The schema's patterns are those of ECMA-262 with Unicode classes, which Python's `re` does not know."""

    def pattern(_validator, wanted, value, _schema):
        if isinstance(value, str) and not regex.search(wanted, value):
            yield jsonschema.ValidationError(f"{value!r} does not match {wanted!r}")

    return jsonschema.validators.extend(jsonschema.Draft7Validator, {"pattern": pattern})(OSCAL)


def test_oscal_is_valid_against_the_official_schema(weeks):
    _, reports = weeks
    hostile = report(audited(provider='<b>"&'), audited(1, provider="x", said=verdict("inconsistent", 1e9)))
    for document, name in (*reports, (report(), "sha256:" + "0" * 64), (hostile, "sha256:" + "1" * 64)):
        errors = list(oscal_validator().iter_errors(json.loads(report_to_oscal(document, name))))
        assert not errors, errors[:3]


def test_oscal_findings_are_the_controls_and_are_made_again_alike(weeks):
    _, [_, (document, name)] = weeks
    made = report_to_oscal(document, name)
    assert made == report_to_oscal(document, name)
    results = json.loads(made)["assessment-results"]["results"]
    assert [r["title"] for r in results] == ["acme", "cheapo", "hush"]
    states = {f["target"]["target-id"]: f["target"]["status"] for f in results[1]["findings"]}
    assert (states["mod-1"]["state"], states["mod-1"]["reason"]) == ("not-satisfied", "fail")
    assert (states["smp-1"]["state"], states["smp-1"]["reason"]) == ("not-satisfied", "other")
    assert len(results[1]["risks"]) == 1
    assert "risks" not in results[0]


def test_junit_turns_no_build_green_for_what_is_not_satisfied(weeks):
    _, [_, (document, _)] = weeks
    root = ET.fromstring(report_to_junit(document))
    suites = {suite.get("name"): suite for suite in root}
    assert suites["acme"].get("failures") == "0"
    assert int(suites["cheapo"].get("failures")) == 2
    for suite in root:
        assert len(suite) == int(suite.get("tests"))
        assert sum(case.find("error") is not None for case in suite) == int(suite.get("errors"))


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_rows_are_the_requests_under_the_report(weeks, tmp_path, ending):
    found, [_, (document, _)] = weeks
    path = tmp_path / f"rows.{ending}"
    assert (
        write_rows(found.store, found.tenant, document, path) == document["totals"]["audited_requests"] == 192
    )
    if ending == "csv":
        with path.open(newline="") as stream:
            rows = list(csv.DictReader(stream))
    else:
        rows = pq.read_table(path).to_pylist()
    assert len(rows) == 192
    assert {row["provider"] for row in rows} == {"acme", "cheapo", "hush"}
    assert sum(row["verdict"] == "inconsistent" for row in rows) == document["totals"]["convicted_alone"]
    with pytest.raises(OutputExistsError):
        write_rows(found.store, found.tenant, document, path)
    with pytest.raises(OptionError):
        write_rows(found.store, found.tenant, document, tmp_path / "rows.xls")
    assert write_rows(found.store, found.other, document, tmp_path / f"none.{ending}") == 0


class Page(HTMLParser):
    """What a page is made of."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.ids, self.links = set(), [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        for name, value in attrs:
            self.attributes.append((tag, name, value))
            if name == "id":
                self.ids.append(value)
            if name == "href":
                self.links.append(value)


def test_the_page_needs_no_script_and_no_network(weeks):
    _, [_, (document, name)] = weeks
    page = render_report(document, name)
    found = Page(page)
    assert not found.tags & {"script", "link", "img", "iframe", "object", "form", "input", "video"}
    assert not [
        a
        for a in found.attributes
        if a[1].startswith("on") or (a[1] in ("src", "srcset", "style") and "url" in a[2])
    ]
    assert all(link.startswith("#") and link[1:] in found.ids for link in found.links)
    assert len(found.ids) == len(set(found.ids))
    assert not re.search(r"https?://(?!\S*verifiable-inference-auditor)", re.sub(r"EU AI Act", "", page))
    assert "default-src 'none'" in page
    assert page == render_report(document, name)
    assert name in page


def test_every_figure_is_named_and_has_its_numbers_in_a_table(weeks):
    _, [_, (document, name)] = weeks
    page = render_report(document, name)
    assert page.count("<svg") == page.count('role="img" aria-label=') >= 4
    for provider in document["providers"]:
        assert provider["log10_e"] in page
        for row in provider["detectable"]:
            assert row["cause"] in page
    for one in document["exceptions"]:
        assert one["request"] in page


def test_hostile_names_reach_the_page_as_text():
    evil = "<script>alert(1)</script>\"'&"
    document = report(
        audited(provider=evil), audited(1, provider="b" + evil, said=verdict("inconsistent", 1e9))
    )
    page = render_report(document, "sha256:" + "0" * 64)
    assert "<script" not in page
    assert "script" not in Page(page).tags


def test_standings_and_disputes_are_shown_where_there_are_some(weeks):
    _, [_, (document, name)] = weeks
    assert "Standing over" not in render_report(document, name)
    standing = {"verdict": "inconsistent", "periods": 7, "log10_e": "55.000", "reasons": [], "causes": []}
    said = {"kind": "filed", "by": "cheapo", "at": "2026-11-20T00:00:00.000000Z"}
    dispute = {"id": "dsp_1", "audit": "aud_1", "provider": "cheapo", "state": "filed", "outcome": None}
    providers = [p | {"standing": standing} for p in document["providers"]]
    page = render_report(
        document | {"providers": providers, "disputes": [dispute | {"statements": [said]}]}, name
    )
    assert "Standing over 7 scheduled periods" in page
    assert "filed by cheapo, 2026-11-20" in page
    assert "1 in 10\N{SUPERSCRIPT FIVE}\N{SUPERSCRIPT FIVE}" in page


def test_empty_reports_have_pages():
    for document in (report(), report(provider="acme")):
        assert "grade U" in render_report(document, "sha256:" + "0" * 64)


def test_the_pdf_carries_the_digest_on_every_page(weeks, tmp_path):
    try:
        import weasyprint  # noqa: F401
    except OSError as error:
        pytest.skip(f"this machine has no Pango: {error}")
    _, [_, (document, name)] = weeks
    raw = render_pdf(document, name)
    assert raw.startswith(b"%PDF-")
    reader = PdfReader(io.BytesIO(raw))
    assert len(reader.pages) >= 3
    for page in reader.pages:
        assert name.removeprefix("sha256:") in page.extract_text().replace("\n", "").replace(" ", "")


def test_the_command_line_from_rows_to_a_verified_pack(tmp_path):
    url = f"sqlite:///{tmp_path / 'rows.sqlite3'}"
    found = load(url)
    kept_logs(tmp_path / "blobs")

    def audit(*words, status=0):
        done = CliRunner().invoke(cli, [str(w) for w in words], env={"AUDITOR_DATABASE_URL": url})
        assert done.exit_code == status, (words, done.output, done.exception)
        return done.output

    assert isinstance(
        CliRunner()
        .invoke(
            cli,
            ["report", "make", "--from", "2026-11-02", "--to", "2026-11-09"],
            env={"AUDITOR_DATABASE_URL": url},
        )
        .exception,
        OptionError,
    )
    period = ("--tenant", "tenant", "--from", "2026-11-02", "--to", "2026-11-09T00:00:00Z")
    (tmp_path / "strict.toml").write_text(
        'schema = "auditor.report-policy/v1"\nname = "strict"\nversion = "3"\n'
    )
    audit("report", "make", *period, "--policy", tmp_path / "strict.toml", "--out", tmp_path / "report.json")
    document = json.loads((tmp_path / "report.json").read_bytes())
    assert document["policy"]["name"] == "strict"
    (line,) = audit("report", "list", "--tenant", "tenant").splitlines()
    assert line.split()[0] == document["id"]
    assert "the same" in audit("report", "remake", document["id"], "--tenant", "tenant")
    _, log_key = signed_log(found.store, tmp_path / "log")
    report_key = key_of("example.com/reports")
    write_key(tmp_path / "report.key", report_key, None)
    pack = tmp_path / "pack.zip"
    audit(
        "report",
        "pack",
        document["id"],
        "--tenant",
        "tenant",
        "--key",
        tmp_path / "report.key",
        "--out",
        pack,
    )
    keys = ("--vkey", report_key.public.vkey, "--log-vkey", log_key.vkey)
    told = json.loads(audit("report", "verify", pack, *keys, "--format", "json"))
    assert (told["verified"], told["report"]) == (True, document["id"])
    audit("report", "redact", pack, "--out", tmp_path / "redacted.zip")
    (tmp_path / "trust.toml").write_text(
        f'[[report_key]]\nvkey = "{report_key.public.vkey}"\nsince = 2020-01-01T00:00:00Z\n'
        f'[log]\npolicy = "log {log_key.vkey}\\nquorum none\\n"\n'
    )
    assert "verified" in audit(
        "report", "verify", tmp_path / "redacted.zip", "--trust", tmp_path / "trust.toml"
    )
    (tmp_path / "trust.toml").write_text(
        f'[[report_key]]\nvkey = "{report_key.public.vkey}"\nuntil = 2020-01-01T00:00:00Z\n'
        f'[log]\npolicy = "log {log_key.vkey}\\nquorum none\\n"\n'
    )
    assert "key-stale" in audit("report", "verify", pack, "--trust", tmp_path / "trust.toml", status=1)
    for kind in ("html", "oscal", "junit"):
        assert audit("report", kind, pack) == audit("report", kind, tmp_path / "report.json")
    audit("report", "rows", document["id"], "--tenant", "tenant", "--out", tmp_path / "rows.csv")
    assert json.loads(audit("report", "schema"))["title"] == "auditor.report/v1"
    found.store.close()
