"""The one record of what a user can choose: bounds, messages, and the table every interface is drawn from."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lafr_core.errors import LafrError, SettingsError
from lafr_core.settings import RestoreSettings, options

NUMBERS = [name for name, (option, _) in options().items() if option.low is not None]
CHOICES = [name for name, (option, _) in options().items() if option.choices is not None]


def test_the_defaults_are_valid_and_frozen() -> None:
    settings = RestoreSettings()
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.fidelity = 1.0  # type: ignore[misc]


def test_the_table_describes_every_field_once() -> None:
    table = options()
    assert list(table) == [field.name for field in dataclasses.fields(RestoreSettings)]
    labels = [option.label for option, _ in table.values()]
    assert len(set(labels)) == len(labels)
    for name, (option, default) in table.items():
        assert option.help.endswith("."), name
        assert getattr(RestoreSettings(), name) == default
        if option.choices is not None:
            assert default in option.choices
        elif isinstance(default, (int, float)) and not isinstance(default, bool):
            assert option.low is not None and option.high is not None and option.step, name
            assert option.low <= default <= option.high
    assert "0 =" in table["fidelity"][0].help and "1 =" in table["fidelity"][0].help  # users read it the other way round


@pytest.mark.parametrize("name", NUMBERS)
def test_bounds_are_inclusive_and_named(name: str) -> None:
    option, default = options()[name]
    kind = type(default)
    extra = {"min_face": 0, "max_face": 0} if name == "max_face" else {}
    for edge in (option.low, option.high):
        assert getattr(RestoreSettings(**{**extra, name: kind(edge)}), name) == edge
    for beyond in (kind(option.low - 1), kind(option.high + 1)):  # type: ignore[operator]
        with pytest.raises(SettingsError, match=re.escape(f"{name}: expected {option.low} to {option.high}, got {beyond!r}")):
            RestoreSettings(**{name: beyond})


@pytest.mark.parametrize("name", [name for name in NUMBERS if isinstance(options()[name][1], float)])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_number_that_is_none(name: str, value: float) -> None:
    with pytest.raises(SettingsError, match=f"{name}: expected .* got (nan|inf|-inf)"):
        RestoreSettings(**{name: value})


@pytest.mark.parametrize("name", CHOICES)
def test_choices_are_listed(name: str) -> None:
    option, _ = options()[name]
    for choice in option.choices or ():
        RestoreSettings(**{name: choice})
    with pytest.raises(
        SettingsError, match=re.escape(f"{name}: expected one of {', '.join(option.choices or ())}, got 'other'")
    ):
        RestoreSettings(**{name: "other"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fidelity", "0.5"),
        ("fidelity", True),
        ("fidelity", None),
        ("top_k", 1.0),
        ("top_k", True),
        ("rotate", 1),
        ("faces", 0),
        ("sort", None),
    ],
)
def test_wrong_types_are_named(name: str, value: Any) -> None:
    with pytest.raises(SettingsError, match=re.escape(f"{name}: expected ") + r"(float|int|bool|str), got"):
        RestoreSettings(**{name: value})


def test_whole_numbers_are_fine_for_shares() -> None:
    assert RestoreSettings(fidelity=1, strength=0).fidelity == 1


@given(st.lists(st.integers(0, 10**6)), st.sampled_from([",", ", ", " ,"]))
def test_face_numbers_are_read_back(numbers: list[int], comma: str) -> None:
    assert RestoreSettings(faces=comma.join(map(str, numbers))).face_indices() == tuple(numbers)


@pytest.mark.parametrize("text", ["-1", "1-3", "a", "1;2", "0.5", "\u00b2", "\u0661"])
def test_face_numbers_that_are_none(text: str) -> None:
    with pytest.raises(SettingsError, match=r"faces: expected numbers from 0 separated by commas, such as '0,2', got"):
        RestoreSettings(faces=text)


def test_the_largest_face_is_not_below_the_smallest() -> None:
    RestoreSettings(min_face=50, max_face=0)
    RestoreSettings(min_face=50, max_face=50)
    with pytest.raises(SettingsError, match=r"max_face: expected 0 or at least min_face \(50\), got 49"):
        RestoreSettings(min_face=50, max_face=49)


def test_unknown_settings_name_the_nearest() -> None:
    assert RestoreSettings.from_mapping({"fidelity": 0.25, "faces": "1"}) == RestoreSettings(fidelity=0.25, faces="1")
    with pytest.raises(SettingsError, match=r"unknown setting 'fidelty'; did you mean 'fidelity'\?"):
        RestoreSettings.from_mapping({"fidelty": 0.25})
    with pytest.raises(SettingsError, match="unknown setting 'zzz'; known settings: detector, threshold"):
        RestoreSettings.from_mapping({"zzz": 1})


def test_settings_errors_are_caught_as_ours_and_as_value_errors() -> None:
    assert issubclass(SettingsError, LafrError) and issubclass(SettingsError, ValueError)
