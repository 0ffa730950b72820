"""The webui's settings page "LAFR": what "Restore faces" uses, which has no panel of its own."""

from __future__ import annotations

from typing import Any

from lafr_core.errors import SettingsError

from . import engine, host, panel
from .settings import Request, options

SECTION = ("lafr", "LAFR")
NOT_HERE = ("identity", "steadiness", "best_frames")
"""Settings without effect where there is no reference photo and no batch."""


def key(name: str) -> str:
    """The webui's name for a setting of ours."""
    return f"lafr_{name}"


def add_to(opts: Any) -> None:
    """Put every setting that works without the panel on the page. A section of two parts works in all versions; the third part
    came with 1.7.
    """
    import gradio as gr
    from modules import shared

    for name, (option, default) in options().items():
        if name in NOT_HERE:
            continue
        kind, arguments = panel.gradio_arguments(name)
        label = f"{option.label}: {arguments.pop('info')}"
        info = shared.OptionInfo(default, label, getattr(gr, kind), arguments, section=SECTION)
        opts.add_option(key(name), info)
    label = "Download missing face networks: a detector or parser that was chosen and is not here comes from facexlib's address"
    opts.add_option(engine.DOWNLOAD, shared.OptionInfo(False, label, gr.Checkbox, {}, section=SECTION))


def request() -> Request:
    """What the settings page says; the defaults, with a warning, when its values no longer fit."""
    values = {name: host.setting(key(name), None) for name in options()}
    try:
        return Request.from_mapping(values)
    except SettingsError as error:
        host.log.warning("LAFR: settings page: %s; using the defaults", error)
        return Request()
