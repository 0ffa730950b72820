"""What the journal knows of a file, and what makes it a file that it does not know."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lafr_core.app import journal as module
from lafr_core.app.journal import NAME, Entry, Journal, Results, Stamp, absolute, is_journal
from lafr_core.errors import InputError


def file(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files whose content is read from now on."""
    seen: list[Path] = []
    sha256 = module.sha256
    monkeypatch.setattr(module, "sha256", lambda path: seen.append(path) or sha256(path))
    return seen


# --- stamps ---


def test_an_untouched_file_is_known_without_reading_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stamp = Stamp.of(file(tmp_path / "a", "text"))
    seen = reads(monkeypatch)
    assert stamp.holds(tmp_path / "a") and seen == []


def test_a_file_is_another_by_its_content_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = file(tmp_path / "a", "text")
    stamp = Stamp.of(path)
    seen = reads(monkeypatch)
    os.utime(path, ns=(1, 1))  # copied with another time: the same file still
    assert stamp.holds(path) and seen == [path]
    path.write_text("tent")
    assert not stamp.holds(path)
    os.utime(path, ns=(stamp.mtime_ns, stamp.mtime_ns))  # and its time put back: the change of that has a time, too
    assert not replace(stamp, ctime_ns=stamp.ctime_ns - 10 * module._NAMING).holds(path)


def test_a_content_with_its_old_time_is_looked_at(tmp_path: Path) -> None:
    path = file(tmp_path / "a", "text")
    stamp = Stamp.of(path)
    assert not replace(stamp, mtime_ns=stamp.mtime_ns + 1, sha256="of another").holds(path)
    assert not replace(stamp, ctime_ns=stamp.ctime_ns + 1, sha256="of another").holds(path)
    assert not replace(stamp, ctime_ns=stamp.ctime_ns - module._NAMING, sha256="of another").holds(path)
    assert replace(stamp, ctime_ns=stamp.ctime_ns - module._NAMING + 1, sha256="of another").holds(path)  # named meanwhile
    assert 10**7 < module._NAMING < 10**9


def test_another_size_is_another_file_without_reading_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = file(tmp_path / "a", "text")
    stamp = Stamp.of(path)
    path.write_text("longer")
    seen = reads(monkeypatch)
    assert not stamp.holds(path) and seen == []


@pytest.mark.skipif(os.name == "nt", reason="pipes as POSIX has them")
def test_what_is_no_file_is_never_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    seen: list[Path] = []
    monkeypatch.setattr(module, "sha256", lambda path: seen.append(path) or "")  # who opens a pipe waits for ever
    assert not Stamp(0, 0, 0, "").holds(tmp_path / "pipe") and seen == []
    assert not Stamp(0, 0, 0, "").holds(tmp_path / "nowhere")


# --- entries ---


def test_a_result_is_one_of_a_source_a_command_and_what_it_was_made_with(tmp_path: Path) -> None:
    source, copy = file(tmp_path / "a" / "x", "text"), file(tmp_path / "b" / "x", "text")
    stamp = Stamp.of(source)
    entry = Entry("restore", absolute(source), stamp, tmp_path / "out", stamp, {"fidelity": 1}, {})
    assert entry.is_result_of(source, "restore", {"fidelity": 1})
    assert not entry.is_result_of(copy, "restore", {"fidelity": 1})  # of the same content, in another album
    assert not entry.is_result_of(source, "detect", {"fidelity": 1})
    assert not entry.is_result_of(source, "restore", {"fidelity": 0})
    source.write_text("another")
    assert not entry.is_result_of(source, "restore", {"fidelity": 1})


# --- the file ---


def note(journal: Journal, source: Path, output: str, written: Path, **more: Any) -> None:
    record = {"input": str(source), "status": "restored", "warnings": [], "faces": []}
    journal.note("restore", source, journal.folder / output, written, {"settings": 1}, record | more)


def test_of_two_lines_about_a_result_the_one_that_holds_counts(tmp_path: Path) -> None:
    source, out = file(tmp_path / "a", "source"), tmp_path / "out"
    first, second = file(out / "x", "first"), file(out / "y", "second one")
    journal = Journal.open(out)
    note(journal, source, "r", first)
    note(journal, source, "r", second)
    for known in (journal, Journal.open(out)):
        file(out / "r", "first")
        found = known.of_output(out / "r")
        assert found is not None and found.output_stamp.size == 5
        file(out / "r", "second one")
        found = known.of_output(out / "r")
        assert found is not None and found.output_stamp.size == 10
        file(out / "r", "somebody's")
        assert known.of_output(out / "r") is None and not known.made(out / "r")


def test_the_last_line_about_a_result_counts(tmp_path: Path) -> None:
    first, second, out = file(tmp_path / "a", "first"), file(tmp_path / "b", "second"), tmp_path / "out"
    written = file(out / "x", "written")
    journal = Journal.open(out)
    note(journal, first, "r", written)
    note(journal, second, "r", written, reason="the second")
    file(out / "r", "written")
    for known in (journal, Journal.open(out)):
        found = known.of_output(out / "r")
        assert found is not None and found.record["reason"] == "the second"
        assert known.outputs_by_source("restore") == {absolute(second): absolute(out / "r")}


@pytest.mark.parametrize("made_with", [5, None, "text", [1], {"more": [[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]}])
def test_settings_of_another_shape_belong_to_nothing(made_with: Any, tmp_path: Path) -> None:
    source, out = file(tmp_path / "a", "source"), tmp_path / "out"
    note(Journal.open(out), source, "r", file(out / "x", "written"))
    text = (out / NAME).read_text()
    (out / NAME).write_text(text.replace('"made_with": {"settings": 1}', f'"made_with": {json.dumps(made_with)}'))
    assert Journal.open(out).entries == {}


@pytest.mark.parametrize("run", [[], {}, None, 3])
def test_settings_without_a_name_belong_to_nothing(run: Any, tmp_path: Path) -> None:
    source, out = file(tmp_path / "a", "source"), tmp_path / "out"
    note(Journal.open(out), source, "r", file(out / "x", "written"))
    head, settings, line = (out / NAME).read_text().splitlines()
    changed = json.dumps({**json.loads(settings), "run": run})
    (out / NAME).write_text("\n".join([head, changed, line]) + "\n")
    assert Journal.open(out).entries == {}


def test_lines_of_several_processes_count_by_their_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = file(tmp_path / "a", "source"), tmp_path / "out"
    written = file(out / "x", "written")
    clock = iter([20.0, 20.0, 10.0, 10.0])
    monkeypatch.setattr(module.time, "time", lambda: next(clock))
    note(Journal.open(out), source, "late.png", written)
    note(Journal.open(out, process=1), source, "early.png", written)
    assert sorted(path.name for path in out.glob(".lafr*")) == [".lafr-journal.jsonl", ".lafr-journal.process0001.jsonl"]
    assert list(Journal.open(out).entries) == [absolute(out / "early.png"), absolute(out / "late.png")]
    assert Journal.open(out).outputs_by_source("restore") == {absolute(source): absolute(out / "late.png")}
    assert Journal.open(out).outputs_by_source("detect") == {}


def test_what_a_run_was_made_with_is_written_once(tmp_path: Path) -> None:
    source, out = file(tmp_path / "a", "source"), tmp_path / "out"
    journal = Journal.open(out)
    for name in ("r", "s"):
        note(journal, source, name, file(out / "x", "written"))
    assert (out / NAME).read_text().count('"made_with"') == 1
    assert len((out / NAME).read_text().splitlines()) == 4  # head, settings, two results
    assert len(Journal.open(out).entries) == 2


def test_a_line_is_on_the_disk_whole_before_the_result_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = file(tmp_path / "a", "source"), tmp_path / "out"
    written, sizes = file(out / "x", "written"), []
    write, fsync = os.write, os.fsync
    monkeypatch.setattr(os, "write", lambda handle, text: write(handle, text[:7]))  # as a disk that is nearly full does
    monkeypatch.setattr(os, "fsync", lambda handle: sizes.append(os.fstat(handle).st_size) or fsync(handle))
    note(Journal.open(out), source, "r", written)
    assert sizes == [(out / NAME).stat().st_size]
    assert len(Journal.open(out).entries) == 1


def test_a_line_cut_short_is_closed_before_the_next(tmp_path: Path) -> None:
    source, out = file(tmp_path / "a", "source"), tmp_path / "out"
    note(Journal.open(out), source, "r", file(out / "x", "written"))
    (out / NAME).write_bytes((out / NAME).read_bytes()[:-9])
    note(Journal.open(out), source, "s", out / "x")
    assert list(Journal.open(out).entries) == [absolute(out / "s")]


def test_a_head_cut_short_passes(tmp_path: Path) -> None:
    source, out = file(tmp_path / "a", "source"), tmp_path / "out"
    file(out / NAME, '{"lafr_jour')
    note(Journal.open(out), source, "r", file(out / "x", "written"))
    assert list(Journal.open(out).entries) == [absolute(out / "r")]


@pytest.mark.skipif(os.name == "nt", reason="links as POSIX has them")
def test_a_file_is_known_through_linked_folders_and_a_link_is_not_what_it_points_to(tmp_path: Path) -> None:
    file(tmp_path / "out" / "r", "text")
    (tmp_path / "linked").symlink_to("out")
    (tmp_path / "out" / "link").symlink_to("r")
    assert absolute(tmp_path / "linked" / "r") == absolute(tmp_path / "out" / "r") == Path(os.path.realpath(tmp_path)) / "out/r"
    assert absolute(tmp_path / "out" / "link").name == "link"


@pytest.mark.skipif(os.name == "nt", reason="links as POSIX has them")
def test_a_journal_is_not_written_through_a_link(tmp_path: Path) -> None:
    source, out = file(tmp_path / "a", "source"), tmp_path / "out"
    note(Journal.open(out), source, "r", file(out / "x", "written"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / NAME).symlink_to(out / NAME)
    with pytest.raises(InputError, match="expected LAFR's journal, got something that is no file; move it away"):
        Journal.open(tmp_path / "other")


def test_results_among_photos_are_known_by_the_journals_below_the_named_folder(tmp_path: Path) -> None:
    source = file(tmp_path / "a", "source")
    album, here = tmp_path / "album", Journal.open(tmp_path / "out")
    for folder, name in ((album, "r"), (album / "x", "y/r"), (album / "x" / "y", "s"), (tmp_path, "album/t")):
        written = file(folder / name, f"the result {name}")
        note(Journal.open(folder), source, name, written)
    known = Results(here, [album])
    assert known.made(album / "x" / "y" / "r") and known.made(album / "x" / "y" / "s")
    assert not known.made(album / "r")  # the results beside the journal of a named folder are what is meant
    assert not known.made(album / "t")  # nor do journals above it count
    assert not Results(here, [tmp_path / "other"]).made(album / "x" / "y" / "r")
    file(album / "x" / "y" / NAME, "my own notes")
    known = Results(here, [album])
    assert not known.made(album / "x" / "y" / "s") and known.made(album / "x" / "y" / "r")
    note(here, source, "r", file(tmp_path / "out" / "r", "ours"))
    assert Results(here).made(tmp_path / "out" / "r") and not Results(Journal(tmp_path)).made(tmp_path / "out" / "r")


def test_journals_of_all_processes_have_names_that_are_known() -> None:
    assert is_journal(Path("a") / NAME) and is_journal(Path(".lafr-journal.process0012.jsonl"))
    assert not is_journal(Path("lafr-journal.jsonl")) and not is_journal(Path(".lafr-journal.json"))
