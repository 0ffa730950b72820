"""The command line on a clip, in processes of its own: stopped by Ctrl-C, gone on with, shared by two processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from clip_files import MakeClip

from lafr_core.video.clips import FileClip

ROOT = Path(__file__).resolve().parents[2]
LAUNCHED = """
import signal
import sys
sys.path[:0] = [{root!r}, {root!r} + "/tests"]
import torch
torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background is started deaf to it
from fakes import face_at, parts
from lafr_core.app import arguments, cli
from lafr_core.video import run
run.SEGMENT = 5
arguments.open_models = lambda *_, **__: parts([face_at(20, 14, 40)])
if __name__ == "__main__":
    sys.exit(cli.main(sys.argv[1:]))
"""


def command(tmp_path: Path, source: Path, out: str, *more: str) -> list[str]:
    script = tmp_path / "launched.py"
    script.write_text(LAUNCHED.format(root=str(ROOT)))
    settings = ["--device", "cpu", "--codec", "ffv1", "--steadiness", "0.3", "--detect-side", "128"]
    return [str(script), "restore", str(source), "-o", str(tmp_path / out), *settings, *more]


def frames(path: Path) -> list[torch.Tensor]:
    return [frame.pixels() for frame in FileClip(path).frames()]


def same(a: Path, b: Path) -> bool:
    return all(torch.equal(x, y) for x, y in zip(frames(a), frames(b), strict=True))


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name not in ("WORLD_SIZE", "RANK", "LOCAL_RANK")}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=500, env=env, stdin=subprocess.DEVNULL
    )


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is sent as a POSIX signal")
def test_ctrl_c_leaves_a_clip_that_plays_and_the_same_command_goes_on(make_clip: MakeClip, tmp_path: Path) -> None:
    source = make_clip("a.mkv", 40)
    whole = run(command(tmp_path, source, "whole"))
    assert whole.returncode == 0, whole.stderr
    arguments = command(tmp_path, source, "out")
    process = subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL
    )
    second = tmp_path / "out" / ".a.mkv.lafr" / "000001.mkv"
    limit = time.monotonic() + 400
    while not second.exists() and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=200)
    assert process.returncode == 130 and "--resume goes on" in said, said
    partial = tmp_path / "out" / "a.partial.mkv"
    assert f"plays as {partial};" in said
    assert 10 <= len(frames(partial)) < 40 and not (tmp_path / "out" / "a.mkv").exists()
    again = run([*arguments, "--resume"])
    assert again.returncode == 0, again.stderr
    assert same(tmp_path / "out" / "a.mkv", tmp_path / "whole" / "a.mkv")
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if not p.name.startswith(".lafr-journal")) == ["a.mkv"]


def test_accelerate_launch_shares_one_clip(make_clip: MakeClip, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    source = make_clip("a.mkv", 23)
    whole = run(command(tmp_path, source, "whole"))
    assert whole.returncode == 0, whole.stderr
    # --multi_gpu is the launcher's word for several processes on one machine; --device cpu keeps them off any GPU.
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    shared = run([*launcher, *command(tmp_path, source, "out", "--report", str(tmp_path / "r.json"))])
    assert shared.returncode == 0, shared.stderr
    assert same(tmp_path / "out" / "a.mkv", tmp_path / "whole" / "a.mkv")
    assert '"processes": 2' in (tmp_path / "r.json").read_text()
    assert shared.stderr.count("23 frames, 1 of 1 faces followed") == 1
