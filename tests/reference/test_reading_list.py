"""What an auditor must read to believe a score stays what one person reads in an hour."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MOST_LINES = 2_000


@pytest.fixture(scope="module")
def listed():
    command = [sys.executable, "-m", "tests.proofs.reading_list"]
    environment = {**os.environ, "NUMBA_DISABLE_JIT": "1"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True
    ).stdout


def test_the_core_that_computes_a_score_is_read_in_an_hour(listed):
    (lines,) = re.findall(r"core is ([\d,]+) lines", listed)
    assert int(lines.replace(",", "")) <= MOST_LINES


def test_the_published_list_names_the_files_that_ran(listed):
    def files(text):
        return re.findall(r"^\| \[([\w./]+)\]", text, re.MULTILINE)

    assert files(listed)
    assert files((ROOT / "docs" / "reading.md").read_text()) == files(listed)
