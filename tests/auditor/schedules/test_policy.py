"""Policies: strict TOML, one clear line for each error, one digest for one meaning."""

from __future__ import annotations

import json

import pytest

from auditor.errors import PolicyInvalidError
from auditor.must_detect import MUST_DETECT
from auditor.schedules.policy import EXAMPLE, Policy, parse_policy

LEAST = 'schema = "auditor.policy/v1"\nname = "strict"\nversion = "1"\n'


def test_the_example_says_the_defaults():
    assert parse_policy(EXAMPLE, "acme") == parse_policy(LEAST, "acme")
    assert parse_policy(LEAST, "acme").must_detect == MUST_DETECT


def test_the_digest_is_of_what_the_file_says_not_of_how():
    spelled = LEAST + "alpha = 1e-3\n# a remark\nbudget_tokens = 20_000\n"
    assert parse_policy(spelled, "acme").digest == parse_policy(LEAST, "acme").digest
    assert parse_policy(LEAST + "alpha = 0.01\n", "acme").digest != parse_policy(LEAST, "acme").digest


def test_a_policy_survives_its_storage():
    policy = parse_policy(LEAST + '[alerts]\nemail = ["a@example.com"]\n', "acme")
    assert Policy.of_text(policy.text()) == policy
    assert json.loads(policy.text())["schema"] == "auditor.policy/v1"


def test_a_providers_own_table_prevails_for_that_provider_only():
    text = LEAST + "budget_tokens = 5000\n[providers.acme]\nalpha = 0.01\nescalation.factor = 2.0\n"
    acme, other = parse_policy(text, "acme"), parse_policy(text, "other")
    assert (acme.alpha, acme.budget_tokens, acme.escalation_factor) == (0.01, 5000, 2.0)
    assert (other.alpha, other.budget_tokens, other.escalation_factor) == (0.001, 5000, 4.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name = ", "not TOML"),
        ('name = "x"\nversion = "1"\n', "schema: Field required"),
        (LEAST.replace("v1", "v2"), "schema: Input should be"),
        (LEAST + "alfa = 0.1\n", "alfa: Extra inputs"),
        (LEAST + "alpha = 1.0\n", "alpha: Input should be less than 1"),
        (LEAST + 'alpha = "0.1"\n', "alpha: Input should be a valid number"),
        (LEAST + "alpha = nan\n", "alpha: Input should be a finite number"),
        (LEAST + 'must_detect = ["weights/int5"]\n', "no deviation 'weights/int5'"),
        (LEAST + 'counts = ["vibes"]\n', "'vibes' is no evidence"),
        (LEAST + 'evidence = ["token-difr", "token-difr"]\n', "names one test twice"),
        (LEAST + '[alerts]\nemail = ["nobody"]\n', "no e-mail address"),
        (LEAST + '[alerts]\nemail = ["a@b.c\\r\\nBcc: x@y.z"]\n', "no e-mail address"),
        (LEAST + "[escalation]\ne_value = 5000.0\n", "not below a conviction"),
        (LEAST + "[escalation]\nbudget_tokens = 1000\n", "below budget_tokens"),
        (LEAST + "[providers.other]\nalpha = 7.0\n", "providers.other: alpha"),
        (LEAST + "providers = 3\n", "providers: must hold one table"),
        (LEAST + "#" * 70_000, "longer than"),
    ],
)
def test_each_error_has_one_clear_line(text, said):
    with pytest.raises(PolicyInvalidError, match=said) as caught:
        parse_policy(text, "acme", where="strict.toml")
    assert all(line.startswith("strict.toml: ") and "\n" not in line for line in caught.value.problems)


def test_every_error_is_told_at_once():
    with pytest.raises(PolicyInvalidError, match="and 2 more") as caught:
        parse_policy(LEAST + "alpha = 3.0\nminimum_power = 2.0\nnobody = 1\n", "acme")
    assert len(caught.value.problems) == 3
