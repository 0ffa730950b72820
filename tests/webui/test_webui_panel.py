"""The panel: presets, the button that numbers faces, and widgets on webuis that lack what newer ones have."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
from webui_fakes import Component, photo

from lafr_webui import extras, panel
from lafr_webui.presets import HELP, PRESETS
from lafr_webui.settings import Request, options


@pytest.fixture
def controls(webui, parts, monkeypatch):
    """The panel's components in a page that holds the Extras tab's picture."""
    webui.load()
    source = Component(elem_id="extras_image")
    source._id = 7
    (remember,) = webui.callbacks["after_component"]
    remember(Component(), elem_id="txt2img_prompt")
    remember(source, elem_id="extras_image")
    context = types.ModuleType("gradio.context")
    context.Context = types.SimpleNamespace(root_block=types.SimpleNamespace(blocks={7: source}))
    monkeypatch.setitem(sys.modules, "gradio.context", context)
    monkeypatch.setattr(sys.modules["gradio"], "update", lambda **values: values, raising=False)
    made = []
    plain = panel.component

    def component(kind, **arguments):
        made.append(plain(kind, **arguments))
        return made[-1]

    monkeypatch.setattr(panel, "component", component)
    drawn = extras.ui()
    assert drawn and not webui.shown
    return types.SimpleNamespace(
        drawn=drawn, context=context.Context, by_id={part.kwargs.get("elem_id"): part for part in made}, source=source
    )


@pytest.mark.parametrize("name", PRESETS)
def test_presets_set_the_same_settings_within_bounds(controls, name):
    assert set(PRESETS[name]) == set(PRESETS["Default"]) and name in HELP
    Request.from_mapping(PRESETS[name])
    button = controls.by_id[f"extras_lafr_{name.lower().replace(' ', '_')}"]
    fn, inputs, outputs = button.clicked
    assert fn() == list(PRESETS[name].values()) and inputs == []
    assert outputs == [controls.drawn[setting] for setting in PRESETS[name]]


def test_the_default_preset_is_the_defaults():
    assert PRESETS["Default"] == {name: options()[name][1] for name in PRESETS["Default"]}


def test_help_is_a_tooltip(controls):
    for name, (option, _) in options().items():
        assert controls.drawn[name].kwargs["tooltip"] == option.help and "info" not in controls.drawn[name].kwargs


def press(controls, image):
    fn, inputs, _ = controls.by_id["extras_lafr_number"].clicked
    assert inputs[0] is controls.source
    return fn(image, *(part.value for part in inputs[1:]))


def test_the_button_numbers_the_faces(controls, webui, parts):
    image = photo(faces=2)
    shown, text = press(controls, image)
    assert "2 found, numbers 0 to 1" in text and shown["visible"]
    assert shown["value"].size == image.size and (np.asarray(shown["value"]) != np.asarray(image)).any()
    assert parts.parts.vae.encoded == 0, "nothing is restored"
    assert webui.shared.state.log == ["begin lafr", "end"]


def test_the_button_counts_as_the_panel_orders(controls, parts):
    controls.drawn["top_k"].value = 1
    assert "1 found, number 0" in press(controls, photo(faces=2))[1]
    controls.drawn["min_face"].value = 500
    assert press(controls, photo(faces=2)) == (
        {"value": None, "visible": False},
        "No face found; 2 are outside the size limits.",
    )


def test_the_button_never_raises(controls, parts, monkeypatch):
    from lafr_webui import engine

    assert press(controls, None)[1] == "Choose a picture above first."
    assert press(controls, photo(faces=0))[1] == "No face found."
    engine.CACHE.clear()
    monkeypatch.setattr(engine, "open_models", lambda *a, **k: 1 / 0)
    assert press(controls, photo())[1] == "Not possible - ZeroDivisionError division by zero"


def test_no_button_where_the_page_has_no_picture(controls):
    controls.context.root_block = types.SimpleNamespace(blocks={})
    assert panel.number_button() is None
    assert extras.ui().keys() == controls.drawn.keys()


def test_a_gradio_without_the_newer_arguments(monkeypatch):
    class Old(Component):
        def __init__(self, value=None, label=None, elem_id=None):
            super().__init__(value=value, label=label, elem_id=elem_id)

    monkeypatch.setitem(sys.modules, "gradio", types.SimpleNamespace(Button=Old, Slider=None))
    assert panel.component("Button", value="x", size="sm", min_width=3, tooltip="help").value == "x"
    with pytest.raises(TypeError):
        panel.component("Button", value="x", unknown=1)
