"""Profiles: data that names itself, and refuses what it is not."""

from __future__ import annotations

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auditor.errors import AuditError, OutputExistsError, ProfileInvalidError
from auditor.must_detect import MUST_DETECT
from auditor.profile import parse_profile, profile_bytes
from auditor.profiles import SHIPPED, shipped_profiles, write_profile
from auditor.reference.deviations import DEVIATIONS

RAW = gzip.decompress((SHIPPED / "vllm-cpu-bf16-plain.json.gz").read_bytes())


def test_round_trip_keeps_the_id():
    profile = parse_profile(RAW, where="x")
    assert profile_bytes(profile) == RAW
    assert profile.honest_tokens == 8875


def test_shipped_profiles_cover_the_recorded_recipes_and_every_deviation():
    profiles = shipped_profiles()
    assert len(profiles) >= 7
    for profile in profiles.values():
        assert set(profile.deviations) == set(DEVIATIONS)
        assert set(MUST_DETECT) <= set(profile.deviations)


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v["honest"].update(outside=5),
        lambda v: v["honest"]["counts"].pop(),
        lambda v: v.update(provider_recipe="another"),
        lambda v: v["deviations"].pop("weights/int4"),
        lambda v: v["honest"]["noise_scale"].update(estimate=1.0),
    ],
)
def test_any_altered_figure_is_noticed(change):
    value = json.loads(RAW)
    change(value)
    with pytest.raises(ProfileInvalidError):
        parse_profile(json.dumps(value).encode(), where="x")


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v["honest"]["counts"][0].update(tokens=10**6),
        lambda v: v["honest"]["counts"][0]["matched"].append([10**6, 1]),
        lambda v: v.update(schema="auditor.profile/v2"),
        lambda v: v.update(surprise=1),
        lambda v: v["honest"].update(tokens="8875"),
    ],
)
def test_contradictions_are_named_in_one_line(change):
    value = json.loads(RAW)
    change(value)
    with pytest.raises(ProfileInvalidError) as caught:
        parse_profile(json.dumps(value).encode(), where="profile.json")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("profile.json: ")


@given(st.integers(0, len(RAW) - 1), st.integers(0, 255))
def test_any_flipped_byte_gives_the_same_profile_or_a_typed_error(position, byte):
    damaged = RAW[:position] + bytes([byte]) + RAW[position + 1 :]
    try:
        profile = parse_profile(damaged, where="x")
    except AuditError:
        return
    # Only the time of creation is not part of what the id covers.
    assert profile.id == parse_profile(RAW, where="x").id


def test_a_profile_is_not_overwritten_and_leaves_no_scraps(tmp_path):
    profile = parse_profile(RAW, where="x")
    path = tmp_path / "p.json"
    write_profile(path, profile)
    with pytest.raises(OutputExistsError):
        write_profile(path, profile)
    with pytest.raises(ProfileInvalidError):
        write_profile(tmp_path / "missing" / "p.json", profile)
    assert [p.name for p in tmp_path.iterdir()] == ["p.json"]
