"""The JSON report: what it says of each input, and that it can be resumed and merged."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import face_at

from lafr_core.app import report
from lafr_core.app.report import Record, Report
from lafr_core.errors import InputError
from lafr_core.store.outputs import Outputs


def test_a_record_says_everything(tmp_path: Path) -> None:
    face = replace(face_at(10, 20, 100), change=0.87654321)
    results = Report({"lafr": "0.1.0"}, tmp_path / "sub" / "report.json")
    results.add(Record("b.jpg", "failed", reason="b.jpg: is empty"))
    results.add(
        Record("a.jpg", "restored", "out/a.png", faces=(face,), warnings=("first of 3 pictures in the file",), seconds=1.23456)
    )
    results.save(finished=True)
    data = json.loads((tmp_path / "sub" / "report.json").read_text())
    assert data["lafr"] == "0.1.0" and data["finished"] is True
    assert [entry["input"] for entry in data["inputs"]] == ["a.jpg", "b.jpg"]
    failed = {"input": "b.jpg", "status": "failed", "output": None, "reason": "b.jpg: is empty", "faces": []}
    assert data["inputs"][1] == {**failed, "warnings": [], "seconds": 0.0}
    assert data["inputs"][0]["seconds"] == 1.235
    assert data["inputs"][0]["faces"] == [
        {
            "box": [10.0, 20.0, 110.0, 120.0],
            "score": 0.9,
            "landmarks": [[41.0, 62.0], [79.0, 62.0], [60.0, 82.0], [44.0, 98.0], [76.0, 98.0]],
            "change": 0.8765,
            "likeness": None,
            "trust": None,
            "verdict": None,
            "person": None,
        }
    ]
    assert results.count("restored", "no_face") == 1 and results.count("failed") == 1


def test_a_report_is_on_disk_before_the_run_ends(tmp_path: Path) -> None:
    results = Report({}, tmp_path / "r.json")
    results.add(Record("a", "no_face", "out/a.png"))
    assert json.loads((tmp_path / "r.json").read_text())["finished"] is False
    for number in range(3):
        results.add(Record(f"{number}", "no_face"))  # within the same seconds: not worth rewriting the file
    assert len(json.loads((tmp_path / "r.json").read_text())["inputs"]) == 1
    results.save()
    assert len(json.loads((tmp_path / "r.json").read_text())["inputs"]) == 4


def test_file_names_that_are_no_utf8_survive(tmp_path: Path) -> None:
    name = b"gr\xfc\xdfe.jpg".decode("utf-8", "surrogateescape")
    results = Report({}, tmp_path / "r.json")
    results.add(Record(name, "no_face"))
    assert report.read(tmp_path / "r.json")["inputs"][0]["input"] == name


def test_nan_never_reaches_the_file(tmp_path: Path) -> None:
    entry = report.face_entry(replace(face_at(0, 0, 10), change=float("nan"), score=float("inf")))
    assert entry["change"] is None and entry["score"] is None
    json.dumps(entry, allow_nan=False)


def test_parts_of_several_processes_are_merged_and_deleted(tmp_path: Path) -> None:
    path = tmp_path / "r[1].json"  # a name with wildcard letters
    for process, name in enumerate(("a", "b", "c")):
        results = Report({"process": process}, report.part(path, process))
        results.add(Record(name, "restored"))
        results.save(finished=True)
    report.write(report.part(path, 7), {}, [Record("stale", "restored").as_dict()], finished=True, outputs=Outputs())
    entries = report.merge(path, {"merged": True}, processes=3, outputs=Outputs())
    assert sorted(entries) == ["a", "b", "c"]
    data = report.read(path)
    assert data["merged"] is True and data["finished"] is True and len(data["inputs"]) == 3
    assert [p.name for p in tmp_path.iterdir()] == ["r[1].json"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"inputs": [{"name": "a"}]}', '{"inputs": 3}'])
def test_a_file_that_is_no_report_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(InputError, match=r"r\.json: not a LAFR report \(.*\); name another --report file"):
        report.read(tmp_path / "r.json")
