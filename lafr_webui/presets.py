"""What the preset buttons set: whole answers to "how strongly?", for people who do not want to know every slider."""

from __future__ import annotations

from typing import Any

from lafr_core.pipeline import REFERENCE_WEIGHT

PRESETS: dict[str, dict[str, Any]] = {
    "Gentle": {"fidelity": 1.0, "detail": 0.5, "strength": 0.7, "identity": REFERENCE_WEIGHT},
    "Default": {"fidelity": 0.75, "detail": 0.85, "strength": 1.0, "identity": REFERENCE_WEIGHT},
    "Strong": {"fidelity": 0.3, "detail": 1.0, "strength": 1.0, "identity": REFERENCE_WEIGHT},
    "With reference": {"fidelity": 0.5, "detail": 0.85, "strength": 1.0, "identity": REFERENCE_WEIGHT},
}
"""Button -> values of settings. Every preset sets the same ones, so that the last button pressed is what counts."""

HELP = {
    "Gentle": "For photos that are nearly good: stays close to the photo and blends with it.",
    "Default": "The values LAFR starts with.",
    "Strong": "For small, blurred and noisy faces: trusts what LAFR knows of faces; look at the result.",
    "With reference": "For very small faces: the reference photo below lends what the face lost. Needs that photo.",
}
