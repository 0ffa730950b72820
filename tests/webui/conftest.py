from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from webui_fakes import FORGE_ROOT, ROOT, Webui, toy_parts

NEEDS_FORGE = pytest.mark.skipif(not FORGE_ROOT, reason="FORGE_ROOT (a stable-diffusion-webui-forge checkout) is not set")


@pytest.fixture(params=["stub", pytest.param("forge", marks=NEEDS_FORGE)])
def webui(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Webui]:
    """A webui whose script runner is a stub with A1111's contract, and again with Forge's own runner."""
    monkeypatch.syspath_prepend(str(ROOT))
    from lafr_webui import engine

    yield Webui(monkeypatch, request.param == "forge", tmp_path / "webui")
    engine.CACHE.clear()


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Toy networks in place of the starter's; ``parts.opened`` counts how often they were loaded."""
    from lafr_webui import engine

    made = toy_parts()
    opened: list[Any] = []

    def open_models(settings: Any, *, device: Any, **_: Any) -> Any:
        opened.append((settings, device, torch.is_inference_mode_enabled()))
        return made

    engine.CACHE.clear()
    monkeypatch.setattr(engine, "open_models", open_models)
    return type("Opened", (), {"parts": made, "opened": opened})
