"""What a result was made with: the same text for the same, another for whatever would make another result."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import pytest

from lafr_core.app import signature
from lafr_core.app.signature import content, made_with, models
from lafr_core.settings import RestoreSettings
from lafr_core.store import assets


def given(**values: Any) -> argparse.Namespace:
    names = (*signature.MODELS, "mode", "steps", "denoise")
    return argparse.Namespace(**{**dict.fromkeys(names), **values})


def test_a_file_and_a_folder_are_told_by_their_content(tmp_path: Path) -> None:
    (tmp_path / "model" / "unet").mkdir(parents=True)
    file = tmp_path / "model" / "unet" / "a"
    file.write_text("one")
    alone, whole = content(file), content(tmp_path / "model")
    os.utime(file, ns=(1, 1))
    assert (content(file), content(tmp_path / "model")) == (alone, whole)
    file.write_text("two")
    assert content(file) != alone and content(tmp_path / "model") != whole
    file.write_text("one")
    file.rename(file.with_name("b"))
    assert content(file.with_name("b")) == alone and content(tmp_path / "model") != whole
    assert content(tmp_path / "nowhere") == "missing"


def test_a_large_file_is_told_by_size_and_time_without_reading_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("four")
    monkeypatch.setattr(signature, "LARGE", 4)
    assert len(content(tmp_path / "a")) == 16
    monkeypatch.setattr(signature, "LARGE", 3)
    assert content(tmp_path / "a") == f"4 {(tmp_path / 'a').stat().st_mtime_ns}"


def test_every_model_that_is_named_counts(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("one")
    settings = RestoreSettings(detector="starter")
    plain = models(given(), settings)
    for name in signature.MODELS:
        before = models(given(**{name: tmp_path / "a"}), settings)
        assert before[name] == content(tmp_path / "a") and before != plain
    assert "detector" in plain and "detector" not in models(given(detector_weights=tmp_path / "a"), settings)


def test_how_a_checkpoint_finishes_counts_where_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("one")
    for how in ({"mode": "one-step"}, {"steps": 7}, {"denoise": 0.3}):
        assert models(given(**how), RestoreSettings()) == models(given(), RestoreSettings())
        with_checkpoint = models(given(checkpoint=tmp_path / "a", **how), RestoreSettings())
        assert with_checkpoint != models(given(checkpoint=tmp_path / "a"), RestoreSettings())


def test_the_starter_s_files_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "bundled", lambda kind: tmp_path / f"{kind}.safetensors")
    (tmp_path / "vae.safetensors").write_text("one")
    before = models(given(), RestoreSettings())
    (tmp_path / "vae.safetensors").write_text("two")
    assert models(given(), RestoreSettings()) != before


def test_a_detector_counts_with_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "detector"
    file.write_text("one")
    monkeypatch.setattr(signature, "best_at_hand", lambda: "scrfd")
    monkeypatch.setattr(signature, "find_weights", lambda name: None if name == "starter" else file)
    auto = models(given(), RestoreSettings(detector="auto"))["detector"]
    assert auto == f"scrfd {content(file)}" == models(given(), RestoreSettings(detector="scrfd"))["detector"]
    assert models(given(), RestoreSettings(detector="starter"))["detector"] == "starter"
    file.write_text("two")
    assert models(given(), RestoreSettings(detector="auto"))["detector"] != auto


def test_settings_and_whatever_else_count() -> None:
    one, other = RestoreSettings(detector="starter"), RestoreSettings(detector="starter", fidelity=0.1)
    assert made_with(given(), one) != made_with(given(), other)
    assert made_with(given(), one, ("detector",)) == made_with(given(), other, ("detector",))
    assert made_with(given(), one, upscale=2) == {**made_with(given(), one), "upscale": 2}
