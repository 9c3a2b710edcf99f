from __future__ import annotations

from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="session")
def published_vectors():
    """Vectors other projects publish; kept beside the checkout, not in it."""
    folder = CHECKOUT.parent / "shared" / "vectors"
    if not folder.is_dir():
        pytest.skip(f"published vectors are not at {folder}")
    return folder
