"""`audit bench`: every figure is there, positive, and beside its limit."""

from __future__ import annotations

import json

from click.testing import CliRunner

from auditor.benchmark import products_flops
from auditor.commands import cli
from auditor.reference.demo.prompts import TARGET
from auditor.reference.model import Model


def test_the_core_is_measured_against_this_machine():
    outcome = CliRunner().invoke(cli, ["bench", "--format", "json", "--threads", "1"])
    assert outcome.exit_code == 0, outcome.output
    answer = json.loads(outcome.stdout)
    assert answer["schema"] == "auditor.bench/v1"
    rows = {row["name"]: row for row in answer["measurements"]}
    assert all(row["value"] > 0 for row in rows.values())
    products = rows["prefill, products"]
    assert products["value"] < 1.3 * products["limit"]
    assert {"head product", "decode, batch 32", "noise and scores, no filter"} <= rows.keys()


def test_the_table_names_units_and_limits():
    outcome = CliRunner().invoke(cli, ["bench", "--threads", "1"])
    assert outcome.exit_code == 0
    assert "GFLOP/s" in outcome.stdout
    assert "limit here" in outcome.stdout


def test_products_are_counted_by_hand():
    model = Model.load(TARGET)
    layer = 256 * (256 + 2 * 128) + 256 * 256 + 3 * 256 * 640
    assert products_flops(model, 1, 0) == 2 * 5 * layer
    assert products_flops(model, 0, 1) == 2 * 256 * 4096
