"""What an archive can trust: nothing is replaced that a run did not make, and a run knows its results (TRIALS L1-L4, W7)."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lafr_core.app import batch, cli, report
from lafr_core.app.jobs import Job
from lafr_core.app.journal import NAME, Journal
from lafr_core.app.processes import Processes
from lafr_core.errors import InputError
from lafr_core.images import photos
from lafr_core.settings import RestoreSettings
from lafr_core.store.outputs import Outputs


def photo(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (120, 100, 3), dtype=np.uint8)).save(path)
    return path


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- nothing is replaced (L1, L2) ---


def test_another_picture_of_the_results_name_is_kept(tmp_path: Path, opened: list[Any], capfd: Any) -> None:
    photo(tmp_path / "scan.jpg")
    photo(tmp_path / "scan.png", 1)
    before = contents(tmp_path)
    assert run("restore", tmp_path / "scan.jpg", "-o", tmp_path) == 2
    assert "scan.png: a file is there already that this run did not make" in capfd.readouterr().err
    assert run("restore", tmp_path / "scan.jpg", "-o", tmp_path, "--resume") == 2
    assert run("detect", tmp_path / "scan.jpg", "-o", tmp_path) == 2
    assert contents(tmp_path) == before and not opened  # refused before any work
    assert run("restore", tmp_path / "scan.jpg", "-o", tmp_path, "--overwrite") == 0
    assert contents(tmp_path)["scan.png"] != before["scan.png"]


@pytest.mark.parametrize("extra", [[], ["--overwrite"], ["--resume"]])
def test_an_output_that_is_an_input_is_refused_in_any_spelling(extra: list[str], tmp_path: Path, opened: list[Any]) -> None:
    source = photo(tmp_path / "in" / "a.png")
    other = photo(tmp_path / "in" / "b.png", 1)
    (tmp_path / "linked").symlink_to(tmp_path / "in")
    os.link(source, tmp_path / "hard.png")
    before = contents(tmp_path)
    commands = [
        ["restore", source, "-o", tmp_path / "in"],
        ["restore", source, "-o", tmp_path / "in" / ".." / "in"],
        ["restore", source, "-o", tmp_path / "linked"],
        ["restore", source, "-o", tmp_path / "out", "--report", source],
        ["restore", source, "-o", tmp_path / "out", "--report", tmp_path / "linked" / "a.png"],
        ["restore", source, "-o", tmp_path / "out", "--report", tmp_path / "hard.png"],
        ["detect", source, "-o", tmp_path / "in"],
        ["detect", source, "-o", tmp_path / "out", "--report", source],
    ]
    for command in commands:
        assert run(*command, *extra) == 2, command
    if extra != ["--resume"]:
        assert run("compare", source, other, "-o", source, *extra) == 2
        assert run("compare", source, other, "-o", tmp_path / "linked" / "b.png", *extra) == 2
    assert contents(tmp_path) == before


def test_foreign_files_in_the_way_of_reports_sheets_and_the_demo_are_kept(tmp_path: Path, opened: list[Any]) -> None:
    source, other = photo(tmp_path / "a.png"), photo(tmp_path / "b.jpg", 1)
    diary = tmp_path / "diary.txt"
    diary.write_text("dear diary")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "faces.json").write_text("{}")
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "sheet.png").write_bytes(b"my sheet")
    before = contents(tmp_path)
    assert run("restore", source, "-o", tmp_path / "out", "--report", diary) == 2
    assert run("restore", source, "-o", tmp_path / "out", "--report", diary, "--resume") == 2
    assert run("detect", source, "-o", tmp_path / "out") == 2
    assert run("compare", source, other, "-o", diary) == 2
    assert run("demo", "-o", tmp_path / "demo") == 2
    assert run("restore", source, "-o", tmp_path / "out", "--report", tmp_path / "out" / "a.png") == 2  # two on one name
    assert contents(tmp_path) == before and not opened


def test_a_link_in_the_way_is_not_followed(tmp_path: Path, opened: list[Any]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").symlink_to(tmp_path / "nowhere.png")
    assert run("restore", photo(tmp_path / "a.png"), "-o", tmp_path / "out") == 2
    assert not (tmp_path / "nowhere.png").exists()


def test_a_file_that_appears_while_the_run_works_is_kept(tmp_path: Path) -> None:
    outputs = Outputs()
    with (
        pytest.raises(InputError, match=r"a\.png: a file has appeared there meanwhile"),
        outputs.writing(tmp_path / "a.png") as part,
    ):
        part.write_bytes(b"ours")
        (tmp_path / "a.png").write_bytes(b"theirs")
    assert contents(tmp_path) == {"a.png": b"theirs"}


def test_a_disk_without_hard_links_takes_results_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    outputs = Outputs()
    with outputs.writing(tmp_path / "new" / "a.png") as part:
        part.write_bytes(b"ours")
    with outputs.writing(tmp_path / "new" / "a.png") as part:  # a file of this run may be written again
        part.write_bytes(b"ours again")
    assert contents(tmp_path) == {"new/a.png": b"ours again"}


def test_two_results_that_a_disk_takes_for_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="named for two results"):
        Outputs().check(tmp_path / "Caf\u00e9.png", tmp_path / "cafe\u0301.PNG")


def test_a_sheet_that_may_not_be_written_is_refused_before_the_pictures_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, other = photo(tmp_path / "a.png"), photo(tmp_path / "b.png", 1)
    read: list[Path] = []
    monkeypatch.setattr(photos, "read", read.append)
    photo(tmp_path / "sheet.png")
    assert run("compare", source, other, "-o", tmp_path / "sheet.png") == 2
    assert read == []


# --- albums (L3) ---


def test_albums_given_together_keep_their_names(tmp_path: Path, opened: list[Any]) -> None:
    photo(tmp_path / "b1" / "img1.jpg")
    photo(tmp_path / "b2" / "img1.jpg", 1)
    photo(tmp_path / "x" / "b2" / "img1.jpg", 2)
    out = tmp_path / "out"
    assert run("restore", tmp_path / "b1", tmp_path / "b2", tmp_path / "x" / "b2", "-o", out) == 0
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*.png")) == ["b1/img1.png", "b2-2/img1.png", "b2/img1.png"]


def test_albums_given_one_after_the_other_do_not_share_a_result(tmp_path: Path, opened: list[Any], capfd: Any) -> None:
    photo(tmp_path / "b1" / "img1.jpg")
    photo(tmp_path / "b2" / "img1.jpg", 1)
    out = tmp_path / "out"
    assert run("restore", tmp_path / "b1", "-o", out) == 0
    before = contents(out)
    for extra in ([], ["--resume"]):
        assert run("restore", tmp_path / "b2", "-o", out, *extra) == 2
        assert "img1.png: a file is there already that this run did not make" in capfd.readouterr().err
    assert contents(out) == before
    assert run("restore", tmp_path / "b2", "-o", out, "--overwrite") == 0
    assert run("restore", tmp_path / "b1", "-o", out, "--resume") == 2  # its result is gone; b2's is there
    before = contents(out)
    shutil.copy(tmp_path / "b2" / "img1.jpg", tmp_path / "b1" / "img1.jpg")
    assert run("restore", tmp_path / "b1", "-o", out, "--resume") == 2  # nor is it b1's where the two are the same picture
    assert run("detect", tmp_path / "b2", "-o", out, "--resume") == 2  # nor one of another command
    assert contents(out) == before


def test_a_report_and_a_gallery_are_replaced_by_a_run_that_goes_on_only(tmp_path: Path, opened: list[Any], capfd: Any) -> None:
    photo(tmp_path / "a.png")
    for flag, name in (("--report", "r.json"), ("--gallery", "g.html")):
        command = ["restore", tmp_path / "a.png", flag, tmp_path / name, "-o"]
        assert run(*command, tmp_path / name[0]) == 0
        before = contents(tmp_path)
        assert run(*command, tmp_path / "another") == 2
        assert f"{name}: a file is there already that this run did not make" in capfd.readouterr().err
        assert contents(tmp_path) == before
        assert run(*command, tmp_path / name[0], "--resume") == 0


def test_a_run_that_goes_on_leaves_another_albums_report_and_gallery_alone(
    tmp_path: Path, opened: list[Any], capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    photo(tmp_path / "one" / "scan.png", 1), photo(tmp_path / "two" / "scan.png", 2)
    page, diary = tmp_path / "page.html", tmp_path / "r.json"
    assert run("restore", "one", "-o", "out1", "--report", diary, "--gallery", page) == 0
    kept = page.read_bytes(), diary.read_bytes()
    for told in (["--report", diary], ["--gallery", page]):
        capfd.readouterr()
        assert run("restore", "two", "-o", "out2", "--resume", *told) == 2
        assert str(told[1]) in capfd.readouterr().err and (page.read_bytes(), diary.read_bytes()) == kept
        assert not (tmp_path / "out2" / "scan.png").exists()
    photo(tmp_path / "one" / "more.png", 3)  # the same album, named in another way and grown
    assert run("restore", tmp_path / "one", "-o", "out1", "--resume", "--report", diary, "--gallery", page) == 0
    assert len(json.loads(diary.read_text())["inputs"]) == 2 and page.read_text().count("<article") == 2


def test_a_share_of_the_report_that_a_killed_process_left_is_written_anew_by_a_run_that_goes_on(tmp_path: Path) -> None:
    share = report.part(tmp_path / "r.json", 1)
    report.write(share, {"lafr": "of yesterday"}, [], False, Outputs())
    made = lambda job: batch.Made(batch.record(job, "no_face", (), ()), lambda path: path.write_text("result"))
    jobs = [Job(photo(tmp_path / f"{name}.jpg"), tmp_path / f"{name}.png") for name in "abc"]
    report_file = tmp_path / "r.json"
    run = batch.Run("restore", jobs, RestoreSettings(), {}, lambda processes: made, Journal(tmp_path), report_file)
    second = Processes(torch.device("cpu"), index=1, count=2)
    with pytest.raises(InputError, match=r"r\.json\.process0001: a file is there already"):
        batch.carry_out(run, second)
    assert batch.carry_out(replace(run, resume=True), second) == 0
    told = report.read(share)
    assert told["finished"] is True and [entry["output"] for entry in told["inputs"]] == [str(tmp_path / "b.png")]
    assert [path.name for path in tmp_path.glob(".lafr*")] == [".lafr-journal.process0001.jsonl"]


def test_a_result_that_is_gone_is_made_again(tmp_path: Path, opened: list[Any]) -> None:
    command = ["restore", photo(tmp_path / "in" / "a.jpg"), "-o", tmp_path / "out", "--resume"]
    assert run(*command) == 0
    before = (tmp_path / "out" / "a.png").read_bytes()
    (tmp_path / "out" / "a.png").unlink()
    assert run(*command) == 0
    assert (tmp_path / "out" / "a.png").read_bytes() == before


# --- resume (L4, W7) ---


def test_resume_does_again_what_would_come_out_differently(tmp_path: Path, opened: list[Any], capfd: Any) -> None:
    source = photo(tmp_path / "in" / "a.jpg")
    photo(tmp_path / "in" / "b.jpg", 1)
    command = ["restore", tmp_path / "in", "-o", tmp_path / "out", "--report", tmp_path / "r.json", "--resume"]
    assert run(*command) == 0
    first = contents(tmp_path / "out")
    assert run(*command) == 0
    assert "nothing left to do" not in capfd.readouterr().err and contents(tmp_path / "out") == first and len(opened) == 1

    stat = source.stat()
    photo(source, 5)  # another picture, and the old time put back
    os.utime(source, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert run(*command) == 0
    second = contents(tmp_path / "out")
    assert second["a.png"] != first["a.png"] and second["b.png"] == first["b.png"]

    assert run(*command, "--fidelity", "0") == 0  # other settings: all again, and the report says only what is true
    third = contents(tmp_path / "out")
    assert third["a.png"] != second["a.png"] and third["b.png"] != second["b.png"]
    told = json.loads((tmp_path / "r.json").read_text())
    assert told["settings"]["fidelity"] == 0 and len(told["inputs"]) == 2
    capfd.readouterr()
    assert run(*command, "--fidelity", "0") == 0
    assert "2 restored (2 were done already)" in capfd.readouterr().err

    shutil.copy(source, tmp_path / "weights.safetensors")
    assert run(*command, "--fidelity", "0", "--prior", tmp_path / "weights.safetensors") == 0  # another model
    assert "done already" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "more",
    [
        ["--salvage"], ["--box", "20,30,80,90"], ["--quality", "50"], ["--no-record"], ["--aligned"], ["--upscale", "2"],
        ["--reference", "r.jpg"], ["--reference", "r.jpg", "--reference-weight", "0.3"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_whatever_changes_a_result_makes_it_anew(more: list[str], tmp_path: Path, opened: list[Any], capfd: Any) -> None:
    photo(tmp_path / "r.jpg", 7)
    more = [str(tmp_path / text) if text == "r.jpg" else text for text in more]
    command = ["restore", photo(tmp_path / "in" / "a.jpg"), "-o", tmp_path / "out", "--resume"]
    first = [*command, *more[:2]] if "--reference-weight" in more else command
    assert run(*first) == 0
    capfd.readouterr()
    run(*command, *more)
    assert "done already" not in capfd.readouterr().err
    run(*command, *more)
    assert ("done already" in capfd.readouterr().err) == ("--aligned" not in more)  # the photo is no crop


def test_a_report_calls_what_is_done_as_the_command_does(
    tmp_path: Path, opened: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    photo(tmp_path / "in" / "a.jpg")
    monkeypatch.chdir(tmp_path)
    assert run("restore", "in", "-o", "out") == 0
    assert run("restore", tmp_path / "in", "-o", tmp_path / "out", "--resume", "--report", "r.json") == 0
    (entry,) = json.loads(Path("r.json").read_text())["inputs"]
    assert (entry["input"], entry["output"]) == (str(tmp_path / "in" / "a.jpg"), str(tmp_path / "out" / "a.png"))


def test_a_result_that_somebody_edited_is_not_replaced(tmp_path: Path, opened: list[Any]) -> None:
    command = ["restore", photo(tmp_path / "in" / "a.jpg"), "-o", tmp_path / "out"]
    assert run(*command) == 0
    (tmp_path / "out" / "a.png").write_bytes(b"edited by hand")
    assert run(*command, "--resume", "--fidelity", "0") == 2
    assert (tmp_path / "out" / "a.png").read_bytes() == b"edited by hand"


def test_the_same_command_twice_says_how_to_go_on(tmp_path: Path, opened: list[Any], capfd: Any) -> None:
    command = ["restore", photo(tmp_path / "in" / "a.jpg"), "-o", tmp_path / "out"]
    assert run(*command) == 0
    assert run(*command) == 2
    assert "--resume goes on where an earlier run stopped, --overwrite replaces it" in capfd.readouterr().err


def test_results_among_the_sources_are_known_and_left_alone(tmp_path: Path, opened: list[Any], capfd: Any) -> None:
    photo(tmp_path / "a.jpg")
    photo(tmp_path / "b.jpg", 1)
    assert run("restore", tmp_path, "-o", tmp_path) == 0
    before = contents(tmp_path)
    assert sorted(before) == [NAME, "a.jpg", "a.png", "b.jpg", "b.png"]
    capfd.readouterr()
    assert run("restore", tmp_path, "-o", tmp_path, "--resume") == 0
    assert "2 restored (2 were done already)" in capfd.readouterr().err
    assert run("restore", tmp_path / "*.*", "-o", tmp_path, "--resume") == 0
    assert contents(tmp_path) == before
    photo(tmp_path / "c.png", 2)  # a new source of the kind results have, and one whose result has a name already
    assert run("restore", tmp_path, "-o", tmp_path, "--resume") == 2  # c.png would become c.png
    (tmp_path / "c.png").rename(tmp_path / "a.png.jpg")
    assert run("restore", tmp_path, "-o", tmp_path, "--resume") == 0
    assert {name: data for name, data in contents(tmp_path).items() if name in before and name != NAME} == {
        name: data for name, data in before.items() if name != NAME
    }


def test_a_source_keeps_its_results_name_when_a_namesake_comes(tmp_path: Path, opened: list[Any], capfd: Any) -> None:
    photo(tmp_path / "in" / "a.jpg")
    command = ["restore", tmp_path / "in", "-o", tmp_path / "out", "--resume"]
    assert run(*command) == 0
    before = contents(tmp_path / "out")["a.png"]
    photo(tmp_path / "in" / "a.png", 1)
    assert run(*command) == 0
    assert "2 restored (1 were done already)" in capfd.readouterr().err
    after = contents(tmp_path / "out")
    assert sorted(after) == [NAME, "a.png", "a.png.png"] and after["a.png"] == before


# --- the journal ---


def test_a_crash_anywhere_leaves_a_run_that_goes_on(tmp_path: Path, opened: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["restore", photo(tmp_path / "in" / "a.jpg"), "-o", tmp_path / "out", "--resume"]
    link, rename = os.link, os.replace

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "link", crash)  # after the journal's line, before the result has its name
    assert run(*command) == 130
    assert list(contents(tmp_path / "out")) == [NAME]
    monkeypatch.setattr(os, "link", link)
    journal = tmp_path / "out" / NAME
    journal.write_bytes(journal.read_bytes()[:-20])  # and the line itself was cut
    assert run(*command) == 0
    first = contents(tmp_path / "out")["a.png"]
    monkeypatch.setattr(os, "replace", crash)  # the same when a result is made again
    assert run(*command, "--fidelity", "0") == 130
    monkeypatch.setattr(os, "replace", rename)
    assert contents(tmp_path / "out")["a.png"] == first
    assert run(*command, "--fidelity", "0") == 0
    assert contents(tmp_path / "out")["a.png"] != first
    assert sorted(contents(tmp_path / "out")) == [NAME, "a.png"]


@pytest.mark.parametrize("junk", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"null\n", b'{"at": 1, "run": "x"}\n'])
def test_damaged_lines_of_the_journal_are_passed_over(junk: bytes, tmp_path: Path, opened: list[Any], capfd: Any) -> None:
    command = ["restore", photo(tmp_path / "in" / "a.jpg"), "-o", tmp_path / "out", "--resume"]
    assert run(*command) == 0
    with (tmp_path / "out" / NAME).open("ab") as file:
        file.write(junk)
    photo(tmp_path / "in" / "b.jpg", 1)
    assert run("restore", tmp_path / "in", "-o", tmp_path / "out", "--resume") == 0
    assert "2 restored (1 were done already)" in capfd.readouterr().err
    assert len(Journal.open(tmp_path / "out").entries) == 2


def test_a_foreign_file_of_the_journals_name_is_refused(tmp_path: Path, opened: list[Any], capfd: Any) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / NAME).write_text("my own notes\n")
    assert run("restore", photo(tmp_path / "a.jpg"), "-o", tmp_path / "out") == 2
    assert "expected LAFR's journal of format 1, got another file" in capfd.readouterr().err
    assert (tmp_path / "out" / NAME).read_text() == "my own notes\n"
    (tmp_path / "out" / NAME).unlink()
    (tmp_path / "out" / NAME).mkdir()
    assert run("restore", tmp_path / "a.jpg", "-o", tmp_path / "out") == 2


def test_results_of_another_run_among_the_photos_are_no_photos(tmp_path: Path, opened: list[Any]) -> None:
    photo(tmp_path / "album/a.png")
    photo(tmp_path / "album/sub/b.png", 90)
    assert run("restore", tmp_path / "album", "-r", "-o", tmp_path / "album/done") == 0
    photo(tmp_path / "album/done/mine.png", 80)
    assert run("restore", tmp_path / "album", "-r", "-o", tmp_path / "again") == 0
    names = {path.relative_to(tmp_path / "again").as_posix() for path in (tmp_path / "again").rglob("*.png")}
    assert names == {"a.png", "sub/b.png", "done/mine.png"}
    # named itself, that folder's results are what is meant
    assert run("restore", tmp_path / "album/done", "-r", "-o", tmp_path / "twice") == 0
    assert (tmp_path / "twice/a.png").is_file() and (tmp_path / "twice/sub/b.png").is_file()
