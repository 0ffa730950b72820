"""LAFR as a ComfyUI pack. Importing this loads nothing; the host asks for the nodes through ``comfy_entrypoint``."""

from __future__ import annotations

from typing import Any

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> Any:
    """The extension object ComfyUI asks for. Nothing of the host is imported before."""
    from .nodes import LafrExtension

    return LafrExtension()
