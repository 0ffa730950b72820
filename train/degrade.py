"""The blind-face degradation of training: :mod:`lafr_core.degrade`, under the name that training code knows it by."""

from __future__ import annotations

from lafr_core.degrade import SEVERITIES, Array, Drawn, Ranges, apply, blur, degrade, draw, resize

__all__ = ["SEVERITIES", "Array", "Drawn", "Ranges", "apply", "blur", "degrade", "draw", "resize"]
