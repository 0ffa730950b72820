"""What every test may ask for."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared"
"""Reference material next to the checkout; not part of the product, so whatever needs it is skipped where it is missing."""


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random numbers in every test, whichever ran before."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def two_threads() -> None:
    """Times and last digits as on the two cores that CI has."""
    torch.set_num_threads(min(2, torch.get_num_threads()))


def shared(*parts: str) -> Path:
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs {path}, reference material that is not part of the repository")
    return path


@pytest.fixture(scope="session")
def faces_folder() -> Path:
    """Sharp portraits with landmarks in faces.csv (train and val)."""
    return shared("data", "faces")


@pytest.fixture(scope="session")
def real_photos() -> Path:
    """Whole degraded photos."""
    return shared("data", "real_lq", "whole")


@pytest.fixture(scope="session")
def shared_weights() -> Path:
    """Third-party weights as a user's machine might have them."""
    return shared("weights")


@pytest.fixture
def starter_weights() -> Path:
    """The repository's own weights; skipped while they are not there yet."""
    folder = ROOT / "lafr_core" / "weights"
    missing = [kind for kind in ("detector", "vae", "adapter", "prior") if not (folder / f"{kind}.safetensors").is_file()]
    if missing:
        pytest.skip(f"needs the starter weights {', '.join(missing)}")
    return folder
