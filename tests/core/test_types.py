"""The face record: frozen, and its sizes; pixels as whole numbers and as floats."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from fakes import BlockVae, Brighter, FixedDetector, MeanColour, face_at

from lafr_core.types import Aligner, Detector, Embedder, Face, Vae, from_unit, to_unit


def test_a_face_cannot_be_changed_in_place() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        face_at(0, 0, 10).score = 0.1  # type: ignore[misc]


def test_sizes_of_a_box_that_is_wider_than_high() -> None:
    face = dataclasses.replace(face_at(0, 0, 1), box=(10.0, 20.0, 70.0, 60.0))
    assert (face.width, face.height, face.size) == (60.0, 40.0, 60.0)


def test_faces_compare_by_what_they_say() -> None:
    assert face_at(1, 2, 30) == face_at(1, 2, 30) != face_at(1, 2, 31)
    assert len({face_at(1, 2, 30), face_at(1, 2, 30)}) == 1


def test_what_is_not_known_yet_is_none() -> None:
    face: Face = face_at(0, 0, 10)
    assert face.matrix is None and face.change is None and face.image_index == 0


def test_the_stand_ins_have_the_shape_of_the_protocols() -> None:
    """mypy checks this too; at run time it keeps tests/fakes.py from drifting away."""
    for stand_in, protocol in (
        (FixedDetector([]), Detector),
        (BlockVae(), Vae),
        (Brighter(), Aligner),
        (MeanColour(), Embedder),
    ):
        wanted = [name for name in (*vars(protocol), *protocol.__annotations__) if not name.startswith("_")]
        assert all(hasattr(stand_in, name) for name in wanted) and wanted


@pytest.mark.parametrize(("name", "top"), [("uint8", 255), ("uint16", 65535)])
def test_whole_numbers_become_floats_and_the_nearest_whole_numbers_again(name: str, top: int) -> None:
    dtype = getattr(torch, name, None)
    if dtype is None:
        pytest.skip(f"this torch has no {name}")
    every = torch.arange(top + 1, dtype=torch.int32).to(dtype)
    assert torch.equal(from_unit(to_unit(every), dtype).to(torch.int32), every.to(torch.int32))
    between = torch.tensor([0.4, 0.6, top - 0.6, top - 0.4, top + 9.0, -9.0]) / top
    assert from_unit(between, dtype).tolist() == [0, 1, top - 1, top, top, 0]
