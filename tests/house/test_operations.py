"""docs/operations: units that systemd accepts, and only commands and options that the program has."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from auditor.commands import cli

OPERATIONS = Path(__file__).parent.parent.parent / "docs" / "operations"


def check(words):
    """A command line without its program's name: known command, known options."""
    command = cli.commands[words[0]]
    known = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
    used = {word.split("=")[0] for word in words[1:] if word.startswith("--")}
    assert used <= known, f"{words[0]}: {used - known}"


def test_container_files_and_units_use_what_there_is():
    seen = 0
    compose = yaml.safe_load((OPERATIONS / "compose.yaml").read_text())
    for service in compose["services"].values():
        if service.get("command"):
            check(service["command"])
            seen += 1
    for unit in OPERATIONS.glob("*.service"):
        (line,) = re.findall(r"^ExecStart=\S+/audit (.+)$", unit.read_text(), flags=re.MULTILINE)
        check(shlex.split(line))
        seen += 1
    (line,) = re.findall(r"^CMD (.+)$", (OPERATIONS / "Containerfile").read_text(), flags=re.MULTILINE)
    check(yaml.safe_load(line))
    for line in re.findall(r"^    audit (.+)$", (OPERATIONS / "README.md").read_text(), flags=re.MULTILINE):
        check(shlex.split(line))
        seen += 1
    assert seen >= 7


def test_the_image_is_built_from_files_and_extras_that_exist():
    import tomllib

    root = OPERATIONS.parent.parent
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (asked,) = re.findall(r"'\.\[(.+)\]'", (OPERATIONS / "Containerfile").read_text())
    assert set(asked.split(",")) <= set(extras)
    assert (root / "constraints.txt").is_file()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here to check the units with")
@pytest.mark.parametrize("name", ["auditor.service", "auditor-worker@.service"])
def test_systemd_accepts_the_units(name, tmp_path):
    unit = tmp_path / name
    text = (OPERATIONS / name).read_text()
    assert "/opt/auditor/bin/audit" in text
    # It looks for the program, which is not installed there on this machine.
    unit.write_text(text.replace("/opt/auditor/bin/audit", "/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False
    )
    complaints = [line for line in done.stderr.splitlines() if name in line or str(unit) in line]
    assert not complaints, done.stderr
