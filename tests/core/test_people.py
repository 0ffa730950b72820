"""Reference people: who a face is taken for, how poor their photos are made, and what the pipeline and the command line do with
them.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lafr_core import api
from lafr_core.app import arguments, cli
from lafr_core.errors import InputError, SettingsError
from lafr_core.faces import people
from lafr_core.faces.crop import crop_faces, place
from lafr_core.pipeline import References, restore_crops, restore_faces, restore_pixels
from lafr_core.settings import RestoreSettings
from lafr_core.types import Face, Models, Person
from tests.fakes import BlockVae, Brighter, FixedDetector, MeanColour, face_at, parts

SMALL, LARGE = face_at(5, 5, 20), face_at(30, 40, 60)


def colour(red: float, green: float, blue: float, height: int = 120, width: int = 100) -> Tensor:
    return torch.tensor([red, green, blue])[:, None, None].expand(3, height, width).contiguous()


def person(name: str, *colours: tuple[float, float, float]) -> Person:
    return people.known(name, torch.stack([colour(*c, 512, 512) for c in colours]), MeanColour())


def test_a_person_is_met_in_the_largest_face_of_each_photo_that_has_one() -> None:
    photo, empty = torch.rand(3, 120, 100), torch.rand(3, 20, 20)
    met = people.meet("anna", [photo, empty, photo], FixedDetector([SMALL, LARGE]), MeanColour())
    assert met.name == "anna" and met.crops.shape == (2, 3, 512, 512)
    assert torch.equal(met.crops[0], crop_faces(photo[None], [place(LARGE)])[0])
    assert torch.allclose(met.embedding, MeanColour()(met.crops[:1])[0])
    with pytest.raises(InputError, match="no face found in the photos of 'anna'; use a clear portrait"):
        people.meet("anna", [empty], FixedDetector([LARGE]), MeanColour())


def test_several_photos_of_a_person_count_alike() -> None:
    mixed = person("both", (1, 0, 0), (0, 0.1, 0))
    assert torch.allclose(mixed.embedding.reshape(3, 4)[:, 0], torch.tensor([0.5**0.5, 0.5**0.5, 0]) / 2, atol=1e-6)


def test_a_face_takes_the_person_it_is_most_like_if_that_is_likely() -> None:
    red, green = person("red", (1, 0, 0)), person("green", (0, 1, 0))
    crops = torch.stack([colour(0.9, 0.2, 0.1, 512, 512), colour(0.4, 0.5, 0, 512, 512), colour(0.1, 0.1, 1, 512, 512)])
    assert people.whose(crops, [red, green], MeanColour()) == [red, green, None]
    assert people.whose(crops, [], None) == [None, None, None]
    with pytest.raises(InputError, match="expected a face embedder to tell whose face is whose"):
        people.whose(crops, [red], None)


@pytest.mark.parametrize("factor", [1.0, 4.0, 12.0, 28.0])
def test_a_reference_is_made_as_poor_as_the_input_and_no_poorer(factor: float) -> None:
    g = torch.Generator().manual_seed(0)
    sharp = torch.stack([sum_of_octaves(g), sum_of_octaves(g)])
    found = people.factor_like(sharp[1:], people.shrunk(sharp[:1], factor)[0])
    assert found in people.FACTORS and 0.7 < found / factor < 1.4


def sum_of_octaves(generator: torch.Generator) -> Tensor:
    """(3, 512, 512): detail of every size, as a photo has."""
    picture = torch.zeros(1, 1, 512, 512)
    for side in (4, 8, 16, 32, 64, 128, 256, 512):
        layer = torch.rand(1, 1, side, side, generator=generator) - 0.5
        picture += torch.nn.functional.interpolate(layer, size=(512, 512), mode="bicubic") * (4 / side) ** 0.5
    return (0.5 + picture[0] * 0.4).clamp(0, 1).expand(3, -1, -1)


# --- in the pipeline -------------------------------------------------------------------------------------------------


class Half:
    """A prior that loses half of everything."""

    spec = BlockVae.spec

    def __call__(self, latents: Tensor) -> Tensor:
        return latents * 0.5


SETTINGS = RestoreSettings(color=0.0, feather=0.0, fidelity=1.0, rotate=False)


def models(*faces: Face, **more: Any) -> Models:
    return replace(parts(list(faces)), aligner=None, prior=Half(), **more)


def test_what_the_prior_loses_of_the_reference_comes_back() -> None:
    crop = colour(0.9, 0.2, 0.6, 512, 512)[None]
    same = people.known("same", crop, MeanColour())
    assert torch.allclose(restore_pixels(crop, models(), 1.0), 0.25 + crop / 2, atol=1e-5)
    near = 1e-3  # a thousandth of nothing is always lent
    assert torch.allclose(restore_pixels(crop, models(), 1.0, lenders=[same]), crop, atol=near)
    assert torch.allclose(restore_pixels(crop, models(), 1.0, lenders=[same], weight=0.5), 0.125 + crop * 0.75, atol=near)
    alone = replace(models(), embedder=None)
    assert torch.allclose(restore_pixels(crop, alone, 1.0, lenders=[same]), crop, atol=near)


def test_a_sampler_finishes_what_was_lent() -> None:
    crop = colour(0.9, 0.2, 0.6, 512, 512)[None]
    same = people.known("same", crop, MeanColour())
    seen: list[Tensor] = []

    def sampler(latents: Tensor, crops: Tensor) -> Tensor:
        seen.append(latents)
        return latents

    run = replace(models(), aligner=Brighter(), sampler=sampler)
    restore_pixels(crop, run, 0.0, lenders=[None])
    restore_pixels(crop, run, 0.0, lenders=[same])
    # The adapter adds 0.2 to input and reference alike: that is what it "loses", so the loan takes it away.
    assert torch.allclose(seen[0] - seen[1], torch.full_like(seen[0], 0.2), atol=1e-3)


def test_weight_zero_and_no_likely_person_are_bit_identical_to_no_references() -> None:
    images = torch.rand(1, 3, 120, 100)
    plain = restore_faces(images, models(SMALL, LARGE), SETTINGS)
    red = References((person("red", (1, 0, 0)),), weight=0.0)
    assert torch.equal(restore_faces(images, models(SMALL, LARGE), SETTINGS, references=red).images, plain.images)
    dark_red = References((person("red", (1, 0, 0)),))
    cold = images * torch.tensor([0.05, 1, 1])[:, None, None]
    two = restore_faces(cold, models(SMALL, LARGE), SETTINGS, references=dark_red)
    assert torch.equal(two.images, restore_faces(cold, models(SMALL, LARGE), SETTINGS).images)
    assert [face.person for face in two.faces] == [None, None] and [face.likeness for face in two.faces] == [None, None]


def test_a_lone_face_is_the_lone_person_and_says_so() -> None:
    images = torch.rand(1, 3, 120, 100) * torch.tensor([0.05, 1, 1])[:, None, None]
    result = restore_faces(images, models(LARGE), SETTINGS, references=References((person("red", (1, 0, 0)),)))
    assert people.whose(crop_faces(images, [place(LARGE)]), [person("red", (1, 0, 0))], MeanColour()) == [None]
    assert result.faces[0].person == "red" and result.faces[0].likeness is not None


def test_each_face_of_a_group_takes_its_own_person() -> None:
    images = colour(0.1, 0.9, 0.1)[None].clone()
    images[:, :, :32, :32] = colour(0.9, 0.1, 0.1, 32, 32)
    both = References((person("green", (0, 1, 0)), person("red", (1, 0, 0))))
    result = restore_faces(images, models(SMALL, LARGE), SETTINGS, references=both)
    assert {face.box[0]: face.person for face in result.faces} == {5: "red", 30: "green"}
    assert result.faces[0].likeness == pytest.approx(1.0, abs=0.08)


def test_crops_may_have_lenders_of_their_own() -> None:
    crops = torch.stack([colour(0.9, 0.2, 0.6, 512, 512), colour(0.2, 0.9, 0.6, 512, 512), colour(0.5, 0.6, 0.7, 512, 512)])
    faces = [place(LARGE)] * 3
    lenders = [None, people.known("b", crops[1:2], MeanColour()), None]
    restored, scored = restore_crops(crops, faces, models(), replace(SETTINGS, batch_size=2), lenders=lenders)
    assert torch.allclose(restored[1], crops[1], atol=1e-3) and not torch.allclose(restored[0], crops[0], atol=1e-2)
    assert [face.person for face in scored] == [None, "b", None]


@pytest.mark.parametrize("weight", [-0.1, 1.1, float("nan")])
def test_a_reference_weight_out_of_bounds_is_refused(weight: float) -> None:
    with pytest.raises(InputError, match="reference weight: expected 0 to 1"):
        References(weight=weight)


# --- from files ------------------------------------------------------------------------------------------------------


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (120, 100)) -> Path:
    """A photo so low in contrast that any other fits it well enough to lend."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(110, 146, (*size, 3), dtype=np.uint8)).save(path)
    return path


def test_references_are_a_photo_a_folder_or_a_folder_of_people(tmp_path: Path) -> None:
    picture(tmp_path / "all" / "anna" / "1.png")
    picture(tmp_path / "all" / "anna" / "2.png", 1)
    picture(tmp_path / "all" / "bert" / "1.png", 2)
    run = parts([LARGE])
    assert [(p.name, len(p.crops)) for p in api.open_references(tmp_path / "all", run)] == [("anna", 2), ("bert", 1)]
    assert [(p.name, len(p.crops)) for p in api.open_references(tmp_path / "all" / "anna", run)] == [("anna", 2)]
    assert [(p.name, len(p.crops)) for p in api.open_references(tmp_path / "all" / "anna" / "1.png", run)] == [("1", 1)]
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="expected reference photos in this folder, found none"):
        api.open_references(tmp_path / "none", run)
    with pytest.raises(InputError, match="expected a face embedder to know the person by"):
        api.open_references(tmp_path / "all", parts([LARGE], embedder=False))


def test_one_call_takes_a_reference(tmp_path: Path) -> None:
    source, good = picture(tmp_path / "a.png"), picture(tmp_path / "good.png", 1)
    run = models(LARGE)
    plain = api.restore(source, SETTINGS, models=run)
    lent = api.restore(source, SETTINGS, models=run, reference=good)
    assert lent.faces[0].person == "reference" and not torch.equal(lent.pixels, plain.pixels)
    listed = api.restore(source, SETTINGS, models=run, reference=[good])
    opened = api.restore(source, SETTINGS, models=run, reference=api.open_references(good, run))
    assert torch.equal(lent.pixels, listed.pixels) and torch.equal(lent.pixels, opened.pixels)
    nothing = api.restore(source, SETTINGS, models=run, reference=good, reference_weight=0.0)
    assert torch.equal(nothing.pixels, plain.pixels)
    with pytest.raises(SettingsError, match="unknown setting 'references'"):
        api.restore(source, models=run, references=good)


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arguments, "open_models", lambda settings, **_: models(LARGE))


def lafr(*words: object) -> int:
    return cli.main([str(word) for word in words])


def test_the_command_line_takes_references_and_reports_the_person(tmp_path: Path, stand_ins: None, capfd: Any) -> None:
    source, good = picture(tmp_path / "in" / "a.png"), picture(tmp_path / "anna" / "good.png", 1)
    common = ("restore", source, "--color", 0, "-o")
    assert lafr(*common, tmp_path / "plain") == 0
    assert lafr(*common, tmp_path / "out", "--reference", good.parent, "--report", tmp_path / "r.json") == 0
    (entry,) = json.loads((tmp_path / "r.json").read_text())["inputs"]
    assert entry["faces"][0]["person"] == "anna" and entry["faces"][0]["likeness"] is not None
    first, second = (Image.open(tmp_path / folder / "a.png").tobytes() for folder in ("plain", "out"))
    assert first != second
    assert lafr(*common, tmp_path / "none", "--reference", good.parent, "--reference-weight", 0) == 0
    assert Image.open(tmp_path / "none" / "a.png").tobytes() == first
    assert lafr(*common, tmp_path / "x", "--reference", good, "--reference-weight", 2) == 2
    assert "reference weight: expected 0 to 1, got 2.0" in capfd.readouterr().err


def test_another_reference_is_another_result_to_resume(tmp_path: Path, stand_ins: None) -> None:
    source, good = picture(tmp_path / "in" / "a.png"), picture(tmp_path / "anna" / "good.png", 1)
    common = ("restore", source, "--color", 0, "-o", tmp_path / "out", "--reference", good, "--resume")
    assert lafr(*common) == 0
    before = (tmp_path / "out" / "a.png").read_bytes()
    picture(good, 7)
    assert lafr(*common) == 0
    assert (tmp_path / "out" / "a.png").read_bytes() != before


def test_an_aligned_crop_takes_one_person_only(tmp_path: Path, stand_ins: None, capfd: Any) -> None:
    source = picture(tmp_path / "in" / "a.png", size=(512, 512))
    for name in ("anna", "bert"):
        picture(tmp_path / "all" / name / "1.png")
    assert lafr("restore", source, "-o", tmp_path / "out", "--aligned", "--reference", tmp_path / "all") == 1
    assert "expected one person with --aligned, got 2" in capfd.readouterr().err
    assert lafr("restore", source, "-o", tmp_path / "out", "--aligned", "--reference", tmp_path / "all" / "anna") == 0
