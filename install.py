"""Runs when A1111 or Forge start with this extension, and once after ComfyUI-Manager cloned the pack.

ComfyUI-Manager has installed requirements.txt by then, so there is nothing left to do. In the webui the packages that restoring
needs (torch, numpy, Pillow, safetensors, tqdm, einops) are there already; nothing else is installed behind the user's back,
since every optional backend says what to install when it is chosen.
"""

from __future__ import annotations

import importlib.util

NEEDED = {"torch": "torch", "numpy": "numpy", "PIL": "pillow", "safetensors": "safetensors", "tqdm": "tqdm", "einops": "einops"}


def missing() -> list[str]:
    """Names on PyPI of needed packages that are not installed."""
    return [project for module, project in NEEDED.items() if importlib.util.find_spec(module) is None]


def install() -> None:
    """Install what is missing with the webui's own installer; do nothing where nothing is missing or there is no webui."""
    wanted = missing()
    if not wanted:
        return
    try:
        from launch import run_pip
    except ImportError:
        return
    for project in wanted:
        run_pip(f"install {project}", f"LAFR requirement {project}")


if __name__ == "__main__":
    install()
