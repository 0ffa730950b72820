"""A file of options, a rehearsal, and the doctor."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lafr_core.app import cli
from lafr_core.app.commands import doctor
from lafr_core.app.config import with_config
from lafr_core.errors import LafrError


def photo(path: Path, height: int = 120) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(height).integers(0, 256, (height, 100, 3), dtype=np.uint8)).save(path)
    return path


def run(*given: object) -> int:
    return cli.main([str(argument) for argument in given])


def test_a_config_holds_options_and_the_command_line_goes_before(tmp_path: Path, opened: list[Any]) -> None:
    config = tmp_path / "lafr.toml"
    config.write_text(
        'fidelity = 0.2\nrotate = false\ndetect_side = 640\nsalvage = false\n[restore]\n"min-face" = 5\n[detect]\ntop_k = 3\n'
    )
    source = photo(tmp_path / "a.png")
    assert run("restore", source, "-o", tmp_path / "one", "--config", config) == 0
    assert run("--config", config, "restore", source, "-o", tmp_path / "two", "--fidelity", "0.9", "--rotate") == 0
    first, second = opened
    assert (first.fidelity, first.rotate, first.detect_side, first.min_face, first.top_k) == (0.2, False, 640, 5, 0)
    assert (second.fidelity, second.rotate, second.detect_side) == (0.9, True, 640)


def test_lists_repeat_a_flag_and_tables_are_of_one_command(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text('[restore]\nbox = ["1,2,3,4", "5,6,7,8"]\noverwrite = true\n')
    assert with_config(["restore", "a", f"--config={config}"]) == [
        "restore",
        "--box=1,2,3,4",
        "--box=5,6,7,8",
        "--overwrite",
        "a",
    ]
    assert with_config(["detect", "a", "--config", str(config)]) == ["detect", "a"]
    assert with_config(["restore", "--", "--config", "x"]) == ["restore", "--", "--config", "x"]
    config.write_text("fidelity = 0.1\nstrength = 0.3\n[restore]\nfidelity = 0.2\n")  # a command's own goes before
    assert with_config(["restore", "--config", str(config)]) == ["restore", "--fidelity=0.2", "--strength=0.3"]


@pytest.mark.parametrize("text", ["fidelity =", "restore = 3", "x = [[1]]"])
def test_a_config_that_makes_no_sense_is_one_sentence(text: str, tmp_path: Path, capfd: Any) -> None:
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(LafrError, match=r"c\.toml"):
        with_config(["restore", "a", "--config", str(tmp_path / "c.toml")])
    assert run("restore", "a", "-o", "b", "--config", tmp_path / "gone.toml") == 2
    assert "gone.toml: expected a TOML file of options" in capfd.readouterr().err


def test_an_unknown_option_in_a_config_is_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("fidelty = 1\n")
    with pytest.raises(SystemExit) as caught:
        run("restore", "a.png", "-o", "out", "--config", tmp_path / "c.toml")
    assert caught.value.code == 2


@pytest.mark.parametrize("command", ["restore", "detect"])
def test_a_rehearsal_counts_faces_and_writes_nothing(command: str, tmp_path: Path, opened: list[Any], capfd: Any) -> None:
    photo(tmp_path / "in" / "a.png")
    photo(tmp_path / "in" / "b.png", 20)
    (tmp_path / "in" / "c.jpg").write_bytes(b"not a picture")
    (tmp_path / "in" / "d.psd").write_bytes(b"8BPS")
    before = sorted(tmp_path.rglob("*"))
    given = [command, tmp_path / "in", "-o", tmp_path / "out"]
    assert run(*given, "--dry-run") == 0
    assert sorted(tmp_path.rglob("*")) == before and not opened
    lines = [line.replace(str(tmp_path), "") for line in capfd.readouterr().out.splitlines()]
    assert lines[0] == "/in/a.png -> /out/a.png: 1 face" and lines[1] == "/in/b.png -> /out/b.png: 0 faces"
    assert lines[2].startswith("/in/c.jpg: would fail: ")
    assert lines[3].startswith("/in/d.psd: left out: a drawing program's file")
    assert run(*given, "--dry-run", "--faces", "3") == 0
    assert "a.png: 1 found, 0 selected (Which faces)" in capfd.readouterr().out
    (tmp_path / "in" / "c.jpg").unlink()
    assert run(*given) == 0
    assert run(*given, "--dry-run") == 2  # as the run itself would be
    capfd.readouterr()
    assert run(*given, "--dry-run", "--resume") == 0
    assert f"a.png: done already ({tmp_path / 'out' / 'a.png'})" in capfd.readouterr().out


def test_the_doctor_says_what_is_here(opened: list[Any], capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("doctor", "--device", "cpu") == 0
    said = capfd.readouterr().out
    for words in (
        "LAFR 0.1.0, Python 3",
        "devices: cpu",
        "torch 2",
        "image formats: PNG, JPEG",
        "vae.safetensors (",
        "starter: ",
    ):
        assert words in said
    assert "self-test: 1 face restored in" in said
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "numpy" else "1")
    assert run("doctor", "--device", "cpu") == 1 and "missing: numpy; run pip install numpy" in capfd.readouterr().out

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("CUDA driver is too old")

    monkeypatch.setattr(doctor, "open_models", broken)
    assert run("doctor", "--device", "cpu") == 1
    assert "self-test: failed: RuntimeError: CUDA driver is too old" in capfd.readouterr().out


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_knows_commands_and_options(shell: str, capfd: Any) -> None:
    pytest.importorskip("shtab", reason="shtab makes the script")
    assert cli.main(["completion", shell]) == 0
    script = capfd.readouterr().out
    for word in ("restore", "detect", "--fidelity", "--upscale", "completion"):
        assert word.lstrip("-") in script


def test_completion_without_shtab_names_it(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert cli.main(["completion", "bash"]) == 2
    assert "pip install shtab" in capfd.readouterr().err
