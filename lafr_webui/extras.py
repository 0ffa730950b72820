"""What the script in the Extras tab does with a picture."""

from __future__ import annotations

from typing import Any

from PIL import Image

from lafr_core.errors import SettingsError

from . import clip, host, panel, record, restorer
from .infotext import KEY, report
from .settings import Request


def ui() -> dict[str, Any]:
    """The panel's components; {} when it cannot be drawn. Anything but a dict, or an exception, would kill the whole Extras
    tab.
    """
    try:
        return panel.build()
    except Exception as error:
        host.report("LAFR: drawing the panel", error)
        return {}


def process(pp: Any, enable: Any = None, reference: Image.Image | None = None, **values: Any) -> None:
    """Restore ``pp.image`` in place of the old one and leave a sentence about it in ``pp.info``. Never raises.

    ``enable`` None is off: the host's extras API calls scripts it does not know with None for everything. Any other None is
    the default.
    """
    if not enable:
        return
    try:
        request = Request.from_mapping(values)
    except SettingsError as error:
        host.log.warning("LAFR: %s", error)
        pp.info[KEY] = record.shown(report("failed", Request(), note=str(error)))
        return
    try:
        pp.image.load()
    except Exception as error:
        # A cut-short file opens, and fails only now. Saving it would raise in the webui's loop and end the whole batch there.
        host.log.warning("LAFR: picture left out, damaged or cut short (%s)", error)
        pp.info[KEY] = record.shown(report("failed", request, note=f"damaged or cut short ({error})"))
        host.skip_picture()
        return
    work = clip.restore if request.engine.steadiness else restorer.restore
    result = work(pp.image, request, reference)
    pp.image = result.image
    pp.info[KEY] = record.shown(result.report)
