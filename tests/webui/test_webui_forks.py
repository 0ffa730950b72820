"""Forge Neo, reForge and Classic: the adapter on their own code, each in a process of its own; and a fork nobody knows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from webui_fakes import info, photo

LIVE = Path(__file__).with_name("fork_live.py")


@pytest.mark.parametrize("kind", ["neo", "reforge", "classic"])
def test_the_forks_own_code(kind):
    root = os.environ.get(f"{kind.upper()}_ROOT", "")
    if not root:
        pytest.skip(f"{kind.upper()}_ROOT (a checkout of that webui) is not set")
    done = subprocess.run([sys.executable, str(LIVE), kind, root], capture_output=True, text=True, timeout=600, cwd=root)
    assert done.returncode == 0 and "as they should be" in done.stdout, (done.stdout + done.stderr)[-3000:]


@pytest.mark.parametrize("where", ["opening", "working"])
def test_a_fork_nobody_knows_costs_the_checkpoint_not_the_restoration(webui, parts, monkeypatch, where):
    from lafr_webui import loaded

    class Broken:
        spec = parts.parts.vae.spec

        def __getattr__(self, name):
            raise AttributeError(f"IntegratedAutoencoder has no attribute {name!r}")

    def check(sd_model):
        if where == "opening":
            raise AttributeError("IntegratedAutoencoder has no attribute 'scaling_factor'")

    monkeypatch.setattr(loaded.a1111, "check", check)
    monkeypatch.setattr(loaded.a1111, "A1111Vae", lambda sd_model: Broken())
    monkeypatch.setattr(loaded.a1111, "A1111Denoiser", lambda sd_model: Broken())
    runner = webui.runner()
    pp = webui.run(photo(), {"enable": True, "engine": "checkpoint"}, runner)
    report = info(pp)
    assert report.status == "ok" and report.restored == 1
    assert "starter engine used (checkpoint" in report.note and "IntegratedAutoencoder has no attribute" in report.note
    assert pp.image.tobytes() == webui.run(photo(), {"enable": True}, runner).image.tobytes()
