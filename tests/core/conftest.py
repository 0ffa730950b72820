"""What tests of the command line share."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import face_at, parts

from lafr_core.app import arguments, signature
from lafr_core.app.commands import detect, doctor, restore
from lafr_core.store import assets


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Stand-ins for the networks; the list grows each time models are opened."""
    asked: list[Any] = []

    def open_models(settings: Any, **_: Any) -> Any:
        asked.append(settings)
        return parts([face_at(20, 30, 60)])

    monkeypatch.setattr(arguments, "open_models", open_models)
    monkeypatch.setattr(doctor, "open_models", open_models)
    for command in (detect, restore):
        monkeypatch.setattr(command, "open_detector", lambda name, **_: parts([face_at(20, 30, 60)]).detector)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    # A run reads the starter's 60 MB to tell its models from others; the tests here run a hundred times and more.
    content, weights = signature.content, assets.bundled("vae").parent
    monkeypatch.setattr(signature, "content", lambda path: "as it is" if path.parent == weights else content(path))
    return asked
