"""The in-process tests on every further checkout of COMFYUI_ROOT: two hosts cannot be imported into one process."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import hostenv
import pytest

HERE = Path(__file__).parent


@pytest.mark.skipif(len(hostenv.roots()) < 2, reason="COMFYUI_ROOT names fewer than two checkouts")
@pytest.mark.parametrize("root", hostenv.roots()[1:], ids=lambda root: root.name)
def test_the_nodes_in_another_hosts_process(root: Path) -> None:
    shared = str(hostenv.SHARED_WEIGHTS.parent)
    environment = {**os.environ, "COMFYUI_ROOT": str(root), "COMFYUI_PYTHON": hostenv.python_of(root), "LAFR_SHARED": shared}
    command = [hostenv.python_of(root), "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "test_host.py")]
    done = subprocess.run(command, cwd=HERE.parents[1], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout
