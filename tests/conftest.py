"""What every test may ask for."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


@pytest.fixture(scope="session")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Our five kinds of weight files with small random networks: right in form, of no use."""
    from lafr_core.faces.networks.detector import StarterNets
    from lafr_core.faces.networks.embedder import StarterEmbedderNet
    from lafr_core.latent.networks.adapter import AdapterNet
    from lafr_core.latent.networks.prior import PriorNet
    from lafr_core.latent.networks.vae import StarterVaeNet
    from lafr_core.store import checkpoint

    generator_state = torch.get_rng_state()
    torch.manual_seed(7)
    half = {"fine": 8, "coarse": 8, "fine_blocks": 1, "coarse_blocks": 1}
    small = {"width": 8, "coarse": 16, "deep": 16, "code_width": 4, "entries": 6, "depth": 1, "grid": 64}
    configs: dict[str, dict[str, Any]] = {
        "vae": {"encoder": half, "decoder": half},
        "adapter": small,
        "prior": {"widths": [8, 16, 16], "depth": 2, "grid": 64},
        "detector": {
            "finder": {"widths": [4, 8, 8, 8], "depths": [1, 1, 1, 1], "neck": 8},
            "close_up": {"widths": [4, 6, 8, 10]},
        },
        "embedder": {"widths": [8, 8, 8, 8], "depths": [1, 1, 1], "dimensions": 16},
    }
    kinds: dict[str, Callable[..., Any]] = {
        "vae": StarterVaeNet,
        "adapter": AdapterNet,
        "prior": PriorNet,
        "detector": StarterNets,
        "embedder": StarterEmbedderNet,
    }
    folder = tmp_path_factory.mktemp("weights")
    for kind, config in configs.items():
        network: Any = kinds[kind](**config)
        checkpoint.save(folder / f"{kind}.safetensors", kind, network, network.config)
    torch.set_rng_state(generator_state)
    return {kind: folder / f"{kind}.safetensors" for kind in configs}
