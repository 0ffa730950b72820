"""The accordion in the Extras tab, drawn from :func:`lafr_webui.settings.options`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from lafr_core.settings import Option

from .settings import options

Rows = tuple[tuple[str, ...], ...]

MAIN: Rows = (("engine", "fidelity", "detail", "strength"), ("detector", "threshold", "color"))
FACES: Rows = (("sort", "top_k", "faces"), ("min_face", "max_face", "detect_side"), ("rotate", "small_faces"))
IDENTITY: Rows = (("identity", "identity_warning"),)
PASTE: Rows = (("mask", "feather"), ("grain", "batch_size"))
CHECKPOINT: Rows = (("timestep", "steps"), ("denoise", "seed"), ("lora",))


def build() -> dict[str, Any]:
    """Draw the panel inside the current gradio context: parameter name -> component, as ``ScriptPostprocessing.ui`` must
    return.
    """
    import gradio as gr

    with accordion("LAFR") as enable:
        controls: dict[str, Any] = {"enable": enable}
        controls |= rows(MAIN)
        with gr.Accordion("Which faces", open=False):
            controls |= rows(FACES)
        with gr.Accordion("Identity", open=False):
            controls["reference"] = gr.Image(
                label="Reference photo of the same person", type="pil", elem_id="extras_lafr_reference"
            )
            controls |= rows(IDENTITY)
        with gr.Accordion("Pasting", open=False):
            controls |= rows(PASTE)
        with gr.Accordion("Loaded checkpoint", open=False):
            controls |= rows(CHECKPOINT)
    return controls


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
    """The component of one setting, with its default, bounds, label and help."""
    import gradio as gr

    kind, arguments = gradio_arguments(name)
    option, default = options()[name]
    arguments |= {"value": default, "label": option.label, "elem_id": f"extras_lafr_{name}"}
    try:
        return getattr(gr, kind)(**arguments)
    except TypeError:  # gradio before 3.21 has no info lines
        arguments.pop("info")
        return getattr(gr, kind)(**arguments)


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
