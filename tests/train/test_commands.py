"""The one command line: every stage answers, old names lead to it, a wrong name is told the nearest right one."""

from __future__ import annotations

import importlib
import runpy
from pathlib import Path

import pytest

from train import __main__ as commands

TRAIN = Path(commands.__file__).parent
OLD = [p.stem for p in TRAIN.glob("*.py") if "the old name of" in p.read_text(encoding="utf-8")]


@pytest.mark.parametrize("name", sorted(commands.STAGES))
def test_every_stage_has_a_main_and_says_what_it_takes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert callable(importlib.import_module(f"train.{commands.STAGES[name].module}").main)
    try:
        commands.main([name, "--help"])
    except SystemExit as done:  # argparse ends the process after its help
        assert done.code in (0, None)
    assert len(capsys.readouterr().out) > 100


def test_the_list_names_every_stage(capsys: pytest.CaptureFixture[str]) -> None:
    commands.main([])
    listed = capsys.readouterr().out
    assert all(f"  {name} " in listed for name in commands.STAGES)


def test_a_wrong_stage_is_told_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        commands.main(["adaptor"])
    assert stopped.value.code == 1
    assert "'adaptor' is no stage; did you mean 'adapter'?" in capsys.readouterr().err


@pytest.mark.parametrize("old", sorted(OLD))
def test_old_names_lead_to_the_same_stage(old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(commands, "main", seen.append)
    monkeypatch.setattr("sys.argv", [f"train.{old}", "--given", "1"])
    runpy.run_module(f"train.{old}", run_name="__main__")
    stage, *rest = seen[0]
    assert rest == ["--given", "1"] and stage in commands.STAGES
    assert f"python -m train {stage}" in (TRAIN / f"{old}.py").read_text(encoding="utf-8")
