"""What every test may use."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def parcel() -> Path:
    """The example parcel: 1000 x 400 px DTM, real ground with artificial features."""
    return ROOT / "examples" / "parcel.tif"
