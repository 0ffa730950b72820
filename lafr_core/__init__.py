"""LAFR: restores degraded faces inside a diffusion model's latent space. The library; no host is imported here.

The public surface is ``__all__``; its names are loaded when they are first used, so importing the package is cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import Restoration, detect, restore
    from .errors import LafrError
    from .images.photos import Photo, read, write
    from .models import open_models
    from .settings import RestoreSettings
    from .types import Face

__version__ = "0.1.0"

_HOME = {
    "restore": "api",
    "detect": "api",
    "Restoration": "api",
    "open_models": "models",
    "RestoreSettings": "settings",
    "Face": "types",
    "Photo": "images.photos",
    "read": "images.photos",
    "write": "images.photos",
    "LafrError": "errors",
}
"""Public name -> the module it lives in."""

__all__ = [  # noqa: RUF022 - in the order in which a reader meets them
    "restore",
    "detect",
    "Restoration",
    "open_models",
    "RestoreSettings",
    "Face",
    "Photo",
    "read",
    "write",
    "LafrError",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; its public names: {', '.join(__all__)}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
