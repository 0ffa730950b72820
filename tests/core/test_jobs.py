"""Inputs -> output names: nothing overwritten, nothing taken twice, nothing silently left out."""

from __future__ import annotations

import os
from pathlib import Path, PurePath

import pytest

from lafr_core.app.jobs import albums, plan
from lafr_core.errors import InputError


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("in/b.jpg", "in/a.PNG", "in/notes.txt", "in/.hidden.jpg", "in/1974/c.jpeg", "in/1974/summer/d.webp"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path


def names(*inputs: str, recursive: bool = False, out: str = "out") -> dict[str, str]:
    return {str(job.source): str(job.output) for job in plan(inputs, Path(out), recursive=recursive)}


def test_a_folder_gives_its_images_in_order(photos: Path) -> None:
    assert list(names("in").items()) == [("in/a.PNG", "out/a.png"), ("in/b.jpg", "out/b.png")]


def test_recursion_keeps_the_relative_path(photos: Path) -> None:
    assert names("in", recursive=True) == {
        "in/1974/c.jpeg": "out/1974/c.png",
        "in/1974/summer/d.webp": "out/1974/summer/d.png",
        "in/a.PNG": "out/a.png",
        "in/b.jpg": "out/b.png",
    }


def test_files_and_globs(photos: Path) -> None:
    assert names("in/b.jpg") == {"in/b.jpg": "out/b.png"}
    assert names("in/notes.txt") == {"in/notes.txt": "out/notes.png"}  # named by hand: tried, and refused by name if it is none
    assert names("in/*.*") == {"in/a.PNG": "out/a.png", "in/b.jpg": "out/b.png"}
    assert names("in/**/*.jp*g") == {"in/1974/c.jpeg": "out/1974/c.png", "in/b.jpg": "out/b.png"}
    assert names("in/19*/summer/*.webp") == {"in/1974/summer/d.webp": "out/1974/summer/d.png"}


def test_a_file_named_twice_is_one_job(photos: Path) -> None:
    assert len(names("in", "in/b.jpg", "in/*.jpg", str(photos / "in" / "b.jpg"))) == 2


def test_names_that_differ_in_the_suffix_only_keep_it(photos: Path) -> None:
    for name in ("a.jpg", "A.webp", "a.jpg.jpg"):
        (photos / "in" / name).write_bytes(b"x")
    found = names("in")
    assert found == {
        "in/A.webp": "out/A.webp.png",
        "in/a.PNG": "out/a.PNG.png",
        "in/a.jpg": "out/a.jpg-2.png",  # a.jpg.jpg was there first
        "in/a.jpg.jpg": "out/a.jpg.png",
        "in/b.jpg": "out/b.png",
    }
    assert len({name.lower() for name in found.values()}) == 5


def test_files_of_one_name_from_two_folders_are_numbered(photos: Path) -> None:
    (photos / "other").mkdir()
    (photos / "other" / "b.jpg").write_bytes(b"x")
    assert names("in/b.jpg", "other/b.jpg") == {"in/b.jpg": "out/b.jpg.png", "other/b.jpg": "out/b.jpg-2.png"}


@pytest.mark.parametrize(("inputs", "out"), [(["in"], "in"), (["in/a.png"], "in"), (["in"], "./in/../in")])
def test_an_input_is_never_overwritten(inputs: list[str], out: str, photos: Path) -> None:
    (photos / "in" / "a.PNG").rename(photos / "in" / "a.png")
    with pytest.raises(InputError, match=r"a\.png: the result would overwrite this input; choose another output folder"):
        plan(inputs, Path(out))


def test_earlier_results_inside_the_input_folder_are_no_inputs(photos: Path) -> None:
    (photos / "in" / "out").mkdir()
    (photos / "in" / "out" / "a.png").write_bytes(b"x")
    assert "in/out/a.png" not in names("in", recursive=True, out="in/out")
    assert "in/out/a.png" in names("in", recursive=True, out="elsewhere")


def test_what_is_missing_becomes_a_failed_job(photos: Path) -> None:
    jobs = plan(["in/b.jpg", "in/nowhere.jpg"], Path("out"))
    assert [job.problem for job in jobs] == [None, "expected an image file or folder, found nothing there"]


def test_an_unreadable_folder_becomes_a_failed_job(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def guarded(path: Path) -> object:
        if Path(path).name == "1974":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    jobs = plan(["in"], Path("out"), recursive=True)
    assert {str(job.source): job.problem for job in jobs} == {
        "in/1974": "the folder cannot be read (Permission denied)",
        "in/a.PNG": None,
        "in/b.jpg": None,
    }


@pytest.mark.parametrize("empty", ["empty", "in/*.bmp"])
def test_nothing_to_do_is_wrong_usage(empty: str, photos: Path) -> None:
    (photos / "empty").mkdir()
    with pytest.raises(InputError, match=r"no image files in '.*'; add -r to search subfolders"):
        plan([empty], Path("out"))


def test_each_of_two_folders_keeps_its_name(photos: Path) -> None:
    assert names("in/1974", "in/1974/summer") == {
        "in/1974/c.jpeg": "out/1974/c.png",
        "in/1974/summer/d.webp": "out/summer/d.png",
    }


def test_albums_are_called_what_their_folders_are(photos: Path) -> None:
    for name in ("x/Summer", "y/summer"):
        (photos / name).mkdir(parents=True)
    assert albums(["in/1974/", "x/Summer", "y/summer", "in/b.jpg"]) == {
        "in/1974/": PurePath("1974"),
        "x/Summer": PurePath("Summer"),
        "y/summer": PurePath("summer-2"),  # for disks that take both for one
    }
    assert albums(["y/summer", "x/Summer"]) == {"y/summer": PurePath("summer"), "x/Summer": PurePath("Summer-2")}
    assert albums(["in", "in"]) == albums(["in/b.jpg", "in"]) == {}


@pytest.mark.skipif(os.name == "nt", reason="links as POSIX has them")
def test_a_folder_with_the_name_of_a_picture_is_none(photos: Path) -> None:
    (photos / "in/folder.jpg").mkdir()
    (photos / "in/link.jpg").symlink_to("1974")
    assert list(names("in")) == list(names("in/*.*")) == ["in/a.PNG", "in/b.jpg"]
    assert list(names("in", recursive=True)) == list(names("in/**/*.*"))  # no folder is walked twice, through a link or not


@pytest.mark.parametrize("held_by", ["an earlier result", "a clip"])
def test_a_numbered_name_goes_round_names_that_are_taken(held_by: str, photos: Path) -> None:
    (photos / "in/a.jpg").write_bytes(b"x")
    held = held_by == "an earlier result"
    earlier = lambda source: Path(os.path.realpath("out")) / "a.jpg.png" if held and source.name == "b.jpg" else None
    jobs = plan(["in"], Path("out"), earlier=earlier, reserved=[] if held else [PurePath("A.JPG.PNG")])
    assert {job.source.name: job.output.name for job in jobs} == {
        "a.PNG": "a.PNG.png",
        "a.jpg": "a.jpg-2.png",
        "b.jpg": "a.jpg.png" if held else "b.png",
    }


def test_an_earlier_result_of_another_format_or_elsewhere_gives_no_name(photos: Path) -> None:
    out = Path(os.path.realpath("out"))
    for before, after in ((out / "old.png", "old.png"), (out / "old.jpg", "b.png"), (photos / "old.png", "b.png")):
        (job,) = plan(["in/b.jpg"], Path("out"), earlier=lambda source, before=before: before)
        assert job.output == Path("out") / after
