from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from lafr_core import settings as core
from lafr_core.errors import InputError, SettingsError
from lafr_core.settings import RestoreSettings
from lafr_webui import infotext, panel
from lafr_webui.infotext import Report, line, parse, report
from lafr_webui.settings import EngineSettings, Request, options

# Drawing two dozen settings takes a while on a busy machine; how long says nothing about them.
FORTY = examples(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def value_of(name):
    option, default = options()[name]
    if option.choices:
        return st.sampled_from(option.choices)
    if isinstance(default, bool):
        return st.booleans()
    if isinstance(default, int):
        return st.integers(int(option.low), int(option.high))
    if isinstance(default, float):
        return st.floats(option.low, option.high)
    return (
        st.lists(st.integers(0, 99), max_size=4).map(lambda ns: ",".join(map(str, ns)))
        if name == "faces"
        else st.text(max_size=30)
    )


@st.composite
def requests(draw):
    values = {name: draw(value_of(name)) for name in options()}
    values["max_face"] = 0 if values["max_face"] < values["min_face"] else values["max_face"]
    return Request.from_mapping(values)


SCORES = st.lists(st.none() | st.integers(-100, 100).map(lambda n: n / 100), max_size=5).map(tuple)
REPORTS = st.builds(
    Report,
    status=st.sampled_from(infotext.STATUSES),
    request=requests(),
    found=st.integers(0, 500),
    restored=st.integers(0, 500),
    **dict.fromkeys(infotext.SCORES, SCORES),
    note=st.text(max_size=80),
)


def test_options_are_the_librarys_and_the_engines():
    assert {name: value for name, value in options().items() if name in core.options()} == core.options()
    assert list(options())[:2] == ["engine", "identity"]


def test_no_values_are_the_defaults():
    assert Request.from_mapping(dict.fromkeys(options())) == Request() == Request(RestoreSettings(), EngineSettings())
    assert Request().changed() == {}


@FORTY
@given(requests())
def test_mapping_round_trip(request_):
    assert Request.from_mapping(request_.as_mapping()) == request_


def test_sliders_and_json_do_not_tell_floats_from_ints():
    request = Request.from_mapping({"steps": 4.0, "fidelity": 1})
    assert request.engine.steps == 4 and type(request.engine.steps) is int
    assert request.restore.fidelity == 1.0 and type(request.restore.fidelity) is float


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stepps": 1}, "unknown setting 'stepps'; did you mean 'steps'"),
        ({"steps": 0}, "steps: expected 1 to 50, got 0"),
        ({"steps": 2.5}, "steps: expected int, got 2.5"),
        ({"engine": "sdxl"}, "engine: expected one of starter, checkpoint, got 'sdxl'"),
        ({"identity": float("nan")}, "identity: expected 0.0 to 1.0"),
        ({"fidelity": 1.5}, "fidelity: expected 0.0 to 1.0"),
    ],
)
def test_bad_values_are_named(values, message):
    with pytest.raises(SettingsError, match=re.escape(message)):
        Request.from_mapping(values)


@FORTY
@given(REPORTS)
def test_line_round_trip(report_):
    assert parse(line(report_)) == report_


@FORTY
@given(REPORTS)
def test_line_needs_no_quoting_by_the_host(report_):
    # A1111's infotext splits at commas, quotes what holds a comma, colon or line break, and reads "key: value".
    assert not set(line(report_)) & set(',:"\n\r\\')


@FORTY
@given(REPORTS)
def test_line_survives_the_hosts_own_grammar(report_):
    # `key: value, key: value` where a bare value ends at the next comma
    written = f"Steps: 20, {infotext.KEY}: {line(report_)}, Size: 512x512"
    found = re.search(rf"(?:^|,)\s*{infotext.KEY}:\s*([^,]*)(?:,|$)", written)
    assert found and parse(found[1]) == report_


def test_line_is_what_people_may_rely_on():
    request = Request.from_mapping({"fidelity": 0.3, "faces": "0,2"})
    text = line(Report("ok", request, found=3, restored=2, change=(0.71, None), trust=(0.8, 0.4), version="0.1.0"))
    assert text == (
        "version=0.1.0; status=ok; found=3; restored=2; change=0.71 -; trust=0.80 0.40; engine=starter; "
        "faces=0%2C2; fidelity=0.3"
    )


@pytest.mark.parametrize("text", ["", "GFPGAN visibility: 1.0", "version=1; status=fine; found=0; engine=starter"])
def test_foreign_lines_are_refused(text):
    with pytest.raises(InputError, match="expected a LAFR line"):
        parse(text)


def test_parse_checks_the_settings_it_reads():
    with pytest.raises(SettingsError, match="fidelity"):
        parse("version=1; status=ok; found=0; engine=starter; fidelity=7")


def test_report_takes_the_cosines_of_the_faces_that_have_one():
    from lafr_core.types import Face

    face = Face((0, 0, 1, 1), ((0.0, 0.0),) * 5, 1.0)
    from dataclasses import replace

    made = report("ok", Request(), [replace(face, change=0.71234), face])
    assert (made.found, made.restored, made.change, made.likeness) == (2, 2, (0.71, None), ())


def test_every_setting_is_on_the_panel_once():
    rows = (*panel.MAIN, *panel.FACES, *panel.IDENTITY, *panel.CLIP, *panel.ENGINE, *panel.ADVANCED)
    assert sorted(name for row in rows for name in row) == sorted(options())


@pytest.mark.parametrize("name", options())
def test_widgets_have_the_records_bounds(name):
    kind, arguments = panel.gradio_arguments(name)
    option, default = options()[name]
    assert arguments["info"] == option.help
    if kind == "Slider":
        assert (arguments["minimum"], arguments["maximum"], arguments["step"]) == (option.low, option.high, option.step)
    assert kind == {bool: "Checkbox", str: "Dropdown" if option.choices else "Textbox"}.get(type(default), kind)
    assert kind in ("Slider", "Number", "Checkbox", "Textbox", "Dropdown")


def test_host_modules_are_only_imported_inside_functions():
    package = Path(panel.__file__).parent
    for path in package.glob("*.py"):
        for text in path.read_text().splitlines():
            assert not re.match(r"(from|import) (modules|backend|gradio|fastapi|networks)\b", text), f"{path.name}: {text}"
