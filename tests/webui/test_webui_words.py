"""The sentence under a picture, and the line that takes its place in the file."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from webui_fakes import photo

from lafr_webui import record
from lafr_webui.infotext import KEY, Report, line, parse
from lafr_webui.settings import Request
from lafr_webui.words import sentence


@pytest.mark.parametrize(
    ("report", "text"),
    [
        (Report("ok", Request(), 1, 1, (0.71,)), "1 face restored. Change (1 = none) 0.71."),
        (
            Report("ok", Request(), 3, 2, (0.71, 0.6), (0.9, None), note="3 found, 2 selected (At most)"),
            "2 faces restored. Change (1 = none) 0.71 and 0.60. Likeness to the reference 0.90. 3 found, 2 selected (At most).",
        ),
        (Report("ok", Request(), 1, 1, trust=(0.9,)), "1 face restored. Trust - supported."),
        (Report("ok", Request(), 2, 2, trust=(0.9, 0.1)), "2 faces restored. Trust - supported and a guess."),
        (
            Report("ok", Request(), 6, 6, trust=(0.9, 0.9, 0.1, 0.9, 0.9, None)),
            "6 faces restored. Trust - 4 supported and 1 a guess.",
        ),
        (Report("ok", Request(), 6, 6, (0.7, 0.2, 0.9, 0.4, 0.5, 0.6)), "6 faces restored. Change (1 = none) 0.20 to 0.90."),
        (
            Report("ok", Request(), 4, 4, (0.7, 0.2, 0.9, 0.4), trust=(0.9, 0.9, 0.1, 0.9)),
            "4 faces restored. Change (1 = none) 0.70 0.20 0.90 and 0.40. "
            "Trust - supported and supported and a guess and supported.",
        ),
        (Report("ok", Request(), 5, 5, (0.7, 0.2, 0.9, 0.4, 0.5)), "5 faces restored. Change (1 = none) 0.20 to 0.90."),
        (Report("no face", Request()), "No face found; the picture is as it was."),
        (
            Report("none selected", Request(), 1, note="1 found, 0 selected (Which faces)"),
            "Nothing restored; the picture is as it was. 1 found, 0 selected (Which faces).",
        ),
        (Report("stopped", Request()), "Stopped; the picture is as it was."),
        (Report("ok", Request.from_mapping({"strength": 0})), "Strength 0; the picture is as it was."),
        (Report("failed", Request(), note="out of luck"), "Not restored - out of luck."),
        (
            Report("ok", Request(), 1, 1, note="starter engine used (none is loaded)"),
            "1 face restored. Starter engine used (none is loaded).",
        ),
    ],
)
def test_what_people_read(report, text):
    assert sentence(report) == text


@pytest.mark.parametrize("note", ["", 'checkpoint: none is loaded, "load" one'])
def test_the_file_gets_the_line(note):
    """The webui writes ``key: value`` with the value in JSON's quotes where it holds a comma, colon or line break."""
    import json

    report = Report("ok", Request.from_mapping({"fidelity": 0.2}), 1, 1, (0.5,), note=note)
    shown = record.shown(report)
    quoted = json.dumps(shown, ensure_ascii=False) if any(mark in shown for mark in ",:\n") else shown
    params = SimpleNamespace(
        pnginfo={"extras": f"Upscaler: None, {KEY}: {quoted}, GFPGAN visibility: 1.0", "dpi": (72, 72), "other": "LAFR: theirs"}
    )
    record.before_saved(params)
    assert params.pnginfo["extras"] == f"Upscaler: None, {KEY}: {line(report)}, GFPGAN visibility: 1.0"
    assert params.pnginfo["dpi"] == (72, 72) and params.pnginfo["other"] == "LAFR: theirs"


def test_the_latest_report_of_two_with_the_same_words_counts():
    for fidelity in (0.2, 0.4):
        shown = record.shown(Report("ok", Request.from_mapping({"fidelity": fidelity}), 1, 1))
    assert parse(record.encoded(f"{KEY}: {shown}").removeprefix(f"{KEY}: ")).request.restore.fidelity == 0.4


def test_a_sentence_that_begins_like_another_is_told_from_it():
    short, long = (Report("ok", Request(), 1, 1, change) for change in ((), (0.71,)))
    for first, second in ((short, long), (long, short)):
        record._lines.clear()
        texts = {record.shown(report): line(report) for report in (first, second)}
        assert record.encoded(f"{KEY}: {record.shown(long)}") == f"{KEY}: {line(long)}"
        assert len(texts) == 2


def test_what_was_said_last_is_remembered_longest():
    first = Report("failed", Request(), note="number 0")
    for number in (*range(record.KEPT), 0, record.KEPT):
        record.shown(Report("failed", Request(), note=f"number {number}"))
    assert record.encoded(f"{KEY}: {sentence(first)}") == f"{KEY}: {line(first)}"


def test_a_note_cannot_be_taken_for_more_of_the_line():
    report = Report("ok", Request(), 1, 1, note="a; fidelity=0.1; status=failed, b: c")
    assert parse(line(report)) == report


def test_lines_of_before_the_change_was_called_so_are_read():
    written = line(Report("ok", Request(), 1, 1, (0.71,)))
    assert parse(written.replace("change=", "alike=")) == parse(written)


def test_what_is_remembered_does_not_grow():
    for number in range(2 * record.KEPT):
        record.shown(Report("failed", Request(), note=f"number {number}"))
    assert len(record._lines) == record.KEPT


def test_the_webui_gets_a_sentence_and_hooks_the_saving(webui, parts):
    pp = webui.run(photo(), {"enable": True})
    assert pp.info[KEY].startswith("1 face restored. Change")
    (hook,) = webui.callbacks["before_image_saved"]
    params = SimpleNamespace(pnginfo={"extras": f"{KEY}: {pp.info[KEY]}"})
    hook(params)
    assert parse(params.pnginfo["extras"].removeprefix("LAFR: ")).restored == 1


def test_faces_that_the_settings_leave_out_are_no_missing_faces(webui, parts):
    """TRIALS W1."""
    pp = webui.run(photo(), {"enable": True, "faces": "9"})
    assert "1 found, 0 selected (Which faces)" in pp.info[KEY] and "No face" not in pp.info[KEY]
