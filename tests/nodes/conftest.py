"""Fixtures for the ComfyUI pack. Tests that need the host skip with a reason unless COMFYUI_ROOT names a checkout."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent))  # the helpers beside this file

import hostenv
import stub_host

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def stub_nodes() -> Any:
    """The pack on a stand-in of ComfyUI 0.3.64."""
    return stub_host.load()


@pytest.fixture(scope="session")
def comfy_root() -> Path:
    root = os.environ.get("COMFYUI_ROOT")
    if not root:
        pytest.skip("COMFYUI_ROOT is not set: needs a ComfyUI checkout and its requirements")
    missing = hostenv.missing_requirements()
    if missing:
        pytest.skip(f"this Python lacks ComfyUI's requirements ({missing}); run with the host's own interpreter")
    for kind in ("detector", "vae", "adapter", "prior", "embedder"):
        if not (ROOT / "lafr_core" / "weights" / f"{kind}.safetensors").is_file():
            pytest.skip(f"the bundled {kind} weights are not in this checkout")
    return Path(root)


@pytest.fixture(scope="session")
def host(comfy_root: Path, tmp_path_factory: pytest.TempPathFactory) -> hostenv.Host:
    """ComfyUI's modules in this process, on the CPU, and the pack loaded as it loads packs."""
    return hostenv.boot(comfy_root, tmp_path_factory.mktemp("comfy_base"))
