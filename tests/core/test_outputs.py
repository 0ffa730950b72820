"""The one rule for everything that a command writes, from all its sides: no file is replaced that the run did not make."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from lafr_core.errors import InputError
from lafr_core.store.outputs import Outputs, can_be_named

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links and pipes as POSIX has them")


def write(outputs: Outputs, path: Path, text: str = "ours") -> None:
    with outputs.writing(path) as part:
        part.write_text(text)


def test_what_is_no_file_is_not_ours_whatever_a_journal_says(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("nowhere")
    asked: list[Path] = []
    outputs = Outputs(ours=lambda path: asked.append(path) is None)
    for name in ("pipe", "link"):
        with pytest.raises(InputError, match=f"{name}: a file is there already that this run did not make"):
            outputs.check(tmp_path / name)
    assert asked == []  # who would look into the pipe would wait for ever


def test_a_link_to_a_folder_is_replaced_itself_and_only_when_asked_to(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    with pytest.raises(InputError, match="link: a file is there already that this run did not make"):
        Outputs().check(tmp_path / "link")
    write(Outputs(overwrite=True), tmp_path / "link")
    assert not (tmp_path / "link").is_symlink() and (tmp_path / "link").read_text() == "ours"
    assert list((tmp_path / "folder").iterdir()) == []


@pytest.mark.parametrize("name", ["theirs longer", "their"])
def test_a_result_of_ours_that_somebody_changes_meanwhile_stays_theirs(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    outputs = Outputs(ours=lambda path: True)
    path.write_text("early")
    stamp = path.stat()

    def change() -> None:
        path.write_text(name)
        if len(name) != len("early"):  # told by its size alone; the other by its time alone
            os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        else:
            os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))

    with pytest.raises(InputError, match="somebody has changed this file meanwhile"), outputs.writing(path) as part:
        part.write_text("ours")
        change()
    assert path.read_text() == name and os.listdir(tmp_path) == ["a.txt"]
    with Outputs(overwrite=True).writing(path) as part:  # what may be replaced may be replaced at any moment
        part.write_text("ours")
        path.write_text("again")
    assert path.read_text() == "ours"


def test_nothing_is_begun_under_a_name_that_is_taken(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("theirs")
    with pytest.raises(InputError, match="did not make"), Outputs().writing(tmp_path / "a.txt"):
        raise AssertionError("the block is not entered")
    assert (tmp_path / "a.txt").read_text() == "theirs"


def test_without_hard_links_a_file_that_appears_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "a.txt"
    with pytest.raises(InputError, match="a file has appeared there meanwhile"), Outputs().writing(path) as part:
        part.write_text("ours")
        path.write_text("theirs")
    assert path.read_text() == "theirs" and os.listdir(tmp_path) == ["a.txt"]


def test_the_bytes_are_on_the_disk_before_the_name_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen = tmp_path / "a.txt", []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: seen.append((os.fstat(handle).st_size, path.exists())) or fsync(handle))
    write(Outputs(), path)
    assert seen == [(4, False)]


def test_a_disk_that_cannot_be_asked_to_flush_takes_the_result_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: int) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuse)
    write(Outputs(), tmp_path / "a.txt")
    assert (tmp_path / "a.txt").read_text() == "ours"


def test_one_file_through_a_linked_folder_is_named_twice(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "linked").symlink_to("out")
    with pytest.raises(InputError, match=r"linked/a\.png: named for two results"):
        Outputs().check(tmp_path / "out" / "a.png", tmp_path / "linked" / "a.png")


def test_a_file_that_is_read_through_a_link_is_not_written(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a source")
    (tmp_path / "link").symlink_to("a.txt")
    with pytest.raises(InputError, match=r"a\.txt: the result would overwrite this input"):
        Outputs([tmp_path / "link"], overwrite=True).check(tmp_path / "a.txt")


def test_two_disks_may_number_their_files_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in.txt").write_text("a source")
    (tmp_path / "out.txt").write_text("a result")
    stat: Any = os.stat

    class Alike:
        def __init__(self, real: os.stat_result, device: int) -> None:
            self.st_dev, self.st_ino, self.st_mode = device, 7, real.st_mode
            self.st_size, self.st_mtime_ns = real.st_size, real.st_mtime_ns

    def numbered(path: Any, *rest: Any, **more: Any) -> Any:
        real = stat(path, *rest, **more)
        name = os.fspath(path) if not isinstance(path, int) else ""
        return Alike(real, 1 if str(name).endswith("in.txt") else 2) if str(name).endswith(".txt") else real

    monkeypatch.setattr(os, "stat", numbered)
    outputs = Outputs([tmp_path / "in.txt"], overwrite=True)
    outputs.check(tmp_path / "out.txt")
    with pytest.raises(InputError, match="would overwrite this input"):
        outputs.check(tmp_path / "in.txt")


def test_names_that_no_disk_takes(tmp_path: Path) -> None:
    assert can_be_named(tmp_path / "a.png") and can_be_named(tmp_path / "no folder" / "a.png")
    assert not can_be_named(tmp_path / "a\0.png") and not can_be_named(tmp_path / ("a" * 300))
