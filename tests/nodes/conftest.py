"""Fixtures for the ComfyUI pack. Tests that need the host skip with a reason unless COMFYUI_ROOT names a checkout."""

from __future__ import annotations

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


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests on a server run on every checkout that COMFYUI_ROOT names."""
    if "comfy_root" in metafunc.fixturenames:
        found = hostenv.roots()
        metafunc.parametrize(
            "comfy_root", found or [None], ids=[root.name for root in found] or ["none"], indirect=True, scope="session"
        )


@pytest.fixture(scope="session")
def comfy_root(request: pytest.FixtureRequest) -> Path:
    """One of COMFYUI_ROOT's checkouts, run by its own interpreter."""
    if request.param is None:
        pytest.skip("COMFYUI_ROOT is not set: needs a ComfyUI checkout and its requirements (tests/nodes/hosts.sh)")
    check_weights()
    return Path(request.param)


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> hostenv.Host:
    """The first checkout's modules in this process, on the CPU, and the pack loaded as it loads packs.

    test_every_host.py does the same for the others, each in a process of its own.
    """
    roots = hostenv.roots()
    if not roots:
        pytest.skip("COMFYUI_ROOT is not set: needs a ComfyUI checkout and its requirements (tests/nodes/hosts.sh)")
    missing = hostenv.missing_requirements()
    if missing:
        pytest.skip(f"this Python lacks ComfyUI's requirements ({missing}); run with the host's own interpreter")
    check_weights()
    return hostenv.boot(roots[0], tmp_path_factory.mktemp("comfy_base"))


def check_weights() -> None:
    for kind in ("detector", "vae", "adapter", "prior", "embedder"):
        if not (ROOT / "lafr_core" / "weights" / f"{kind}.safetensors").is_file():
            pytest.skip(f"the bundled {kind} weights are not in this checkout")
