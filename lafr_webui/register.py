"""Everything LAFR adds to the webui besides its panel."""

from __future__ import annotations

from collections.abc import Callable


def register() -> None:
    """Hook into a starting (or reloading) webui. A part that this version cannot take is reported and left out; nothing is
    raised.
    """
    from modules import script_callbacks, shared

    from . import api, face_restorer, options, panel, record

    def settings_page() -> None:
        _try("settings page", lambda: options.add_to(shared.opts))

    def route(_demo: object, app: object) -> None:
        _try("API route", lambda: api.register(app))

    _try("settings page", lambda: script_callbacks.on_ui_settings(settings_page))
    _try("API route", lambda: script_callbacks.on_app_started(route))
    _try("numbered faces", lambda: script_callbacks.on_after_component(panel.remember_source))
    _try("lines in saved pictures", lambda: script_callbacks.on_before_image_saved(record.before_saved))
    _try("Restore faces", lambda: face_restorer.register(shared.face_restorers))


def _try(part: str, step: Callable[[], None]) -> None:
    from . import host

    try:
        step()
    except Exception as error:
        host.report(f"LAFR: {part}", error)
