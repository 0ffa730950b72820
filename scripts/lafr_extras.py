"""LAFR in the Extras tab of AUTOMATIC1111 and Forge. The webui runs every file in this folder: keep it at this one."""

from typing import Any

from modules import scripts_postprocessing

# Everything is imported now: A1111 takes this folder's parent off sys.path again once the script is loaded.
from lafr_webui import api, extras, face_restorer, options, panel, record, register  # noqa: F401


class LafrPostprocessing(scripts_postprocessing.ScriptPostprocessing):
    """After Upscale (1000), so that faces are restored at their final size; before GFPGAN (2000) and CodeFormer (3000)."""

    name = "LAFR"
    order = 1800

    def ui(self) -> dict[str, Any]:
        return extras.ui()

    def process(self, pp: Any, **values: Any) -> None:
        extras.process(pp, **values)


register.register()
