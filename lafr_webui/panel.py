"""The accordion in the Extras tab, drawn from :func:`lafr_webui.settings.options`."""

from __future__ import annotations

import contextlib
import html
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from lafr_core.settings import Option

from .numbered import numbered
from .presets import HELP, PRESETS
from .settings import options

Rows = tuple[tuple[str, ...], ...]

MAIN: Rows = (("fidelity", "strength"), ("detail", "color"))
IDENTITY: Rows = (("identity", "identity_warning"),)
FACES: Rows = (("faces", "top_k"), ("sort", "threshold"), ("min_face", "max_face"))
ENGINE: Rows = (("engine", "lora"), ("steps", "timestep"), ("denoise", "seed"))
CLIP: Rows = (("steadiness", "best_frames"),)
ADVANCED: Rows = (("detector", "detect_side"), ("rotate", "small_faces"), ("mask", "feather"), ("grain", "batch_size"))

NARROWEST = 260
"""Pixels below which a control takes a row of its own: two columns on a desktop, one in a narrow window."""

OPTIONAL = ("height", "size", "min_width", "tooltip")
"""Arguments that some gradio or webui does not know, and that a control works without."""

SOURCE = "extras_image"
"""The webuis' own name for the picture in the Extras tab."""

_sources: list[Any] = []


def remember_source(component: Any, **kwargs: Any) -> None:
    """The webui's after-component callback: keeps the Extras tab's picture, which is drawn before the scripts."""
    if kwargs.get("elem_id") == SOURCE:
        _sources[:] = [component]


def build() -> dict[str, Any]:
    """Draw the panel inside the current gradio context: parameter name -> component, as ``ScriptPostprocessing.ui`` must
    return.
    """
    import gradio as gr

    with accordion("LAFR") as enable:
        controls: dict[str, Any] = {"enable": enable}
        with gr.Row(elem_id="extras_lafr_presets"):
            buttons = {name: preset_button(name) for name in PRESETS}
        controls |= rows(MAIN)
        with gr.Accordion("Reference photo", open=False):
            controls["reference"] = component(
                "Image",
                label="Another photo of the same person",
                type="pil",
                elem_id="extras_lafr_reference",
                height=240,
                tooltip="Its largest face counts.",
            )
            controls |= rows(IDENTITY)
        with gr.Accordion("Which faces", open=False):
            controls |= rows(FACES)
            numbers = number_button()
        with gr.Accordion("Frames of one clip", open=False):
            controls |= rows(CLIP)
        with gr.Accordion("Engine and loaded checkpoint", open=False):
            controls |= rows(ENGINE)
        with gr.Accordion("Advanced", open=False):
            controls |= rows(ADVANCED)
        if numbers is not None:
            numbers.listen(controls)
        for name, button in buttons.items():
            values = PRESETS[name]
            outputs = [controls[setting] for setting in values]
            button.click(fn=partial(list, values.values()), inputs=[], outputs=outputs, show_progress=False)
    return controls


def preset_button(name: str) -> Any:
    """One of the buttons that set several sliders at once."""
    slug = name.lower().replace(" ", "_")
    return component("Button", value=name, size="sm", min_width=100, elem_id=f"extras_lafr_{slug}", tooltip=HELP[name])


@dataclass(frozen=True)
class Numbers:
    """The button that shows the uploaded picture with its faces numbered, and where it shows them."""

    source: Any
    button: Any
    told: Any
    shown: Any

    def listen(self, controls: dict[str, Any]) -> None:
        """Let a press search as the panel's ``controls`` say."""
        import gradio as gr

        names = [name for row in (*FACES, *ADVANCED) for name in row if name != "faces"]

        def show(image: Any, *values: Any) -> tuple[Any, str]:
            picture, text = numbered(image, dict(zip(names, values, strict=True)))
            return gr.update(value=picture, visible=picture is not None), html.escape(text)

        self.button.click(fn=show, inputs=[self.source, *(controls[name] for name in names)], outputs=[self.shown, self.told])


def number_button() -> Numbers | None:
    """Draw the button where the uploaded picture's component can be had."""
    import gradio as gr

    source = _source()
    if source is None:
        return None
    button = component(
        "Button",
        value="Show the numbered faces",
        size="sm",
        elem_id="extras_lafr_number",
        tooltip="Finds the faces of the uploaded picture and writes their numbers on them; restores nothing.",
    )
    told = gr.HTML(value="", elem_id="extras_lafr_numbers_text")
    shown = component(
        "Image", label="Numbered faces", type="pil", interactive=False, visible=False, elem_id="extras_lafr_numbers"
    )
    return Numbers(source, button, told, shown)


def _source() -> Any | None:
    """The Extras tab's picture, if it belongs to the page that is being drawn: txt2img's copy of the panel has none, and a
    reloaded page has a new one.
    """
    try:
        from gradio.context import Context

        known = Context.root_block.blocks
    except (ImportError, AttributeError):
        return None
    return next((source for source in _sources if getattr(source, "_id", None) in known), None)


@contextlib.contextmanager
def accordion(label: str) -> Iterator[Any]:
    """The webui's accordion whose opening is the enable switch; a checkbox in a plain accordion where the version lacks it
    (< 1.6).
    """
    import gradio as gr

    try:
        from modules.ui_components import InputAccordion
    except ImportError:
        with gr.Accordion(label, open=False):
            yield gr.Checkbox(False, label="Enable", elem_id="extras_lafr_enable")
        return
    with InputAccordion(False, label=label, elem_id="extras_lafr") as enable:
        yield enable


def rows(names: Rows) -> dict[str, Any]:
    """Setting name -> component, drawn row by row."""
    import gradio as gr

    controls: dict[str, Any] = {}
    for row in names:
        with gr.Row():
            controls |= {name: widget(name) for name in row}
    return controls


def widget(name: str) -> Any:
    """The component of one setting, with its default, bounds and label, and its help as a tooltip."""
    kind, arguments = gradio_arguments(name)
    option, default = options()[name]
    arguments |= {"value": default, "label": option.label, "elem_id": f"extras_lafr_{name}", "min_width": NARROWEST}
    return component(kind, tooltip=arguments.pop("info"), **arguments)


def component(kind: str, **arguments: Any) -> Any:
    """A gradio component, without what this webui's gradio does not take; ``tooltip`` is the webui's own addition."""
    import gradio as gr

    make = getattr(gr, kind)
    for left_out in ((), ("height",), ("height", "size"), ("height", "size", "min_width"), OPTIONAL):
        try:
            return make(**{name: value for name, value in arguments.items() if name not in left_out})
        except TypeError:
            if left_out == OPTIONAL:
                raise
    raise AssertionError("the last try returns or raises")


def gradio_arguments(name: str) -> tuple[str, dict[str, Any]]:
    """Gradio's class name for a setting, and the arguments beyond value and label. The settings page uses it as well."""
    option, default = options()[name]
    if option.choices is not None:
        return "Dropdown", {"choices": list(option.choices), "info": option.help}
    if isinstance(default, bool):
        return "Checkbox", {"info": option.help}
    if isinstance(default, str):
        return "Textbox", {"info": option.help, "max_lines": 1}
    if _wide(option):  # nobody hits one of 16384 values with a slider
        return "Number", {"precision": 0, "info": option.help}
    return "Slider", {"minimum": option.low, "maximum": option.high, "step": option.step, "info": option.help}


def _wide(option: Option) -> bool:
    return (
        option.low is not None
        and option.high is not None
        and option.step is not None
        and (option.high - option.low) / option.step > 1000
    )
