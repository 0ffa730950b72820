"""The accordion in the Extras tab, drawn from :func:`lafr_webui.settings.options`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from lafr_core.settings import Option

from .settings import options

MAIN = ("engine", "fidelity", "strength", "color")
FACES = ("detector", "threshold", "sort", "top_k", "faces", "min_face", "max_face", "rotate", "small_faces", "detect_side")
IDENTITY = ("identity", "identity_warning")
PASTE = ("mask", "feather", "grain", "batch_size")
CHECKPOINT = ("timestep", "steps", "denoise", "seed", "lora")


def build() -> dict[str, Any]:
    """Draw the panel inside the current gradio context: parameter name -> component, as ``ScriptPostprocessing.ui`` must return."""
    import gradio as gr

    with accordion("LAFR") as enable:
        controls: dict[str, Any] = {"enable": enable}
        with gr.Row():
            controls |= {name: widget(name) for name in MAIN}
        with gr.Accordion("Which faces", open=False):
            controls |= {name: widget(name) for name in FACES}
        with gr.Accordion("Identity", open=False):
            controls["reference"] = gr.Image(label="Reference photo of the same person", type="pil", elem_id="extras_lafr_reference")
            controls |= {name: widget(name) for name in IDENTITY}
        with gr.Accordion("Pasting", open=False):
            controls |= {name: widget(name) for name in PASTE}
        with gr.Accordion("Loaded checkpoint", open=False):
            controls |= {name: widget(name) for name in CHECKPOINT}
    return controls


@contextlib.contextmanager
def accordion(label: str) -> Iterator[Any]:
    """The webui's accordion whose opening is the enable switch; a checkbox in a plain accordion where the version lacks it (< 1.6)."""
    import gradio as gr

    try:
        from modules.ui_components import InputAccordion
    except ImportError:
        with gr.Accordion(label, open=False):
            yield gr.Checkbox(False, label="Enable", elem_id="extras_lafr_enable")
        return
    with InputAccordion(False, label=label, elem_id="extras_lafr") as enable:
        yield enable


def widget(name: str) -> Any:
    """The component of one setting, with its default, bounds, label and help."""
    import gradio as gr

    kind, arguments = describe(name)
    option, default = options()[name]
    arguments |= {"value": default, "label": option.label, "elem_id": f"extras_lafr_{name}"}
    try:
        return getattr(gr, kind)(**arguments)
    except TypeError:  # gradio before 3.21 has no info lines
        arguments.pop("info")
        return getattr(gr, kind)(**arguments)


def describe(name: str) -> tuple[str, dict[str, Any]]:
    """Gradio's class name for a setting, and the arguments beyond value and label. The settings page uses it as well."""
    option, default = options()[name]
    if option.choices is not None:
        return "Dropdown", {"choices": list(option.choices), "info": option.help}
    if isinstance(default, bool):
        return "Checkbox", {"info": option.help}
    if isinstance(default, str):
        return "Textbox", {"info": option.help}
    if _wide(option):  # nobody hits one of 16384 values with a slider
        return "Number", {"precision": 0, "info": option.help}
    return "Slider", {"minimum": option.low, "maximum": option.high, "step": option.step, "info": option.help}


def _wide(option: Option) -> bool:
    return option.low is not None and option.high is not None and option.step is not None and (option.high - option.low) / option.step > 1000
