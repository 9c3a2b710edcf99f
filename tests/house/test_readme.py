"""The README's commands run, and its first screen is what the tool prints."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readme")
    (folder / "tests").symlink_to(ROOT / "tests")
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "AUDITOR_DATABASE_URL": f"sqlite:///{folder}/store.sqlite3",
        "OMP_NUM_THREADS": "1",
    }

    def run(command):
        return subprocess.run(
            command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, check=False
        )

    return run


def without_speed(text):
    return re.sub(r"[\d,]+ tokens/s", "N tokens/s", text)


def test_first_screen_is_what_the_command_prints(shell):
    ((command, printed),) = re.findall(r"```console\n\$ (.+?)\n(.+?)\n```", README, flags=re.DOTALL)
    done = shell(command)
    assert done.returncode == 1, done.stderr
    assert without_speed(done.stdout).split() == without_speed(printed).split()


COMMANDS = re.findall(
    r"^(audit .+?)(?:\s+#.*)?$",
    "\n".join(re.findall(r"```sh\n(.+?)```", README, flags=re.DOTALL)),
    flags=re.MULTILINE,
)


def test_every_audit_command_runs_in_order(shell):
    assert len(COMMANDS) >= 4
    for command in COMMANDS:
        done = shell(command)
        # A thousand tokens may well be too few to acquit: 3 is a right answer, 1 and 2 are not.
        assert done.returncode in (0, 3), f"{command}\n{done.stdout}\n{done.stderr}"


def test_every_make_target_named_exists_and_the_other_way_round():
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    (phony,) = re.findall(r"^\.PHONY: (.+)$", makefile, flags=re.MULTILINE)
    named = set(
        re.findall(
            r"^make ([\w-]+)",
            "\n".join(re.findall(r"```sh\n(.+?)```", README, flags=re.DOTALL)),
            flags=re.MULTILINE,
        )
    )
    assert named <= set(phony.split())
    assert set(phony.split()) - named <= {"lint", "types", "clean"}


def test_every_path_named_exists():
    for path in re.findall(r"\]\(([\w./-]+)\)", README):
        assert (ROOT / path).exists(), path
