"""Databases that hold what the real worker wrote."""

from __future__ import annotations

import pytest

from tests.auditor.reports.recorded_rows import load


@pytest.fixture
def recorded(database_url):
    found = load(database_url)
    yield found
    found.store.close()


@pytest.fixture
def sqlite(tmp_path):
    found = load(f"sqlite:///{tmp_path / 'rows.sqlite3'}")
    yield found
    found.store.close()
