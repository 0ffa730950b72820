"""Paste masks, and facexlib's parsers behind the parsed one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lafr_core.errors import CheckpointError, InputError, MissingPackageError, SettingsError
from lafr_core.faces import parser
from lafr_core.faces.masks import crop_mask, outline
from lafr_core.faces.parser import BISENET, PARSENET, open_parser
from lafr_core.geometry import FFHQ_TEMPLATE
from lafr_core.settings import RestoreSettings
from lafr_core.store import assets

CPU = torch.device("cpu")


class Rectangle:
    """A parser that sees a rectangle (with a thin gap) in crops brighter than 0.5 and nothing in the others."""

    name = "rectangle"

    def __call__(self, crops: Tensor) -> Tensor:
        face = torch.zeros(1, 1, 512, 512)
        face[..., 150:420, 120:360] = 1.0
        face[..., 300:304, 120:360] = 0.0
        bright = crops.mean(dim=(1, 2, 3), keepdim=True) > 0.5
        return torch.where(bright, face, torch.zeros(()))


def mask_of(shape: str, feather: float) -> Tensor:
    return crop_mask(RestoreSettings(mask=shape, feather=feather), torch.ones(1, 3, 512, 512), Rectangle())


def border(mask: Tensor) -> Tensor:
    return torch.cat([mask[..., 0, :], mask[..., -1, :], mask[..., :, 0], mask[..., :, -1]], dim=-1)


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(["oval", "square", "parse"]), st.floats(0, 0.5))
def test_every_mask_is_zero_at_the_border_and_one_inside(shape: str, feather: float) -> None:
    mask = mask_of(shape, feather)
    assert mask.shape == (1, 1, 512, 512) and mask.dtype == torch.float32
    assert float(border(mask).abs().max()) == 0.0
    assert float(mask.min()) == 0.0
    if shape != "parse" or feather <= 0.2:  # a parsed face narrower than the feather has no inside
        assert float(mask.max()) == 1.0


@pytest.mark.parametrize("shape", ["oval", "square", "parse"])
def test_feather_zero_is_a_hard_edge(shape: str) -> None:
    assert set(mask_of(shape, 0.0).unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("feather", [0.05, 0.1, 0.25])
def test_feather_is_the_width_of_the_soft_edge(feather: float) -> None:
    soft = {
        # Along the middle row, left half: pixels that are neither 0 nor 1.
        shape: int(((row := mask_of(shape, feather)[0, 0, 230, :256]) > 0).logical_and(row < 1).sum())
        for shape in ("oval", "square")
    }
    assert soft["square"] == pytest.approx(512 * feather, abs=2)
    assert soft["oval"] == pytest.approx(512 * feather, rel=0.1)
    edge = mask_of("parse", feather)[0, 0, 230, :256]
    assert int(((edge > 0) & (edge < 1)).sum()) == pytest.approx(512 * feather, abs=5)


@pytest.mark.parametrize("shape", ["oval", "square"])
def test_edges_rise_without_steps(shape: str) -> None:
    row = mask_of(shape, 0.1)[0, 0, 230, :256]
    rise = row.diff()
    assert float(rise.min()) >= 0 and float(rise.max()) < 1.6 / 51


def test_default_oval_covers_the_face_from_forehead_to_chin() -> None:
    mask = crop_mask(RestoreSettings())[0, 0]
    for x, y in (*FFHQ_TEMPLATE, (256, 110), (256, 450), (110, 300), (402, 300)):  # landmarks, forehead, chin, cheeks
        assert float(mask[round(y), round(x)]) == 1.0
    for x, y in ((8, 8), (503, 8), (8, 503), (503, 503)):
        assert float(mask[y, x]) == 0.0


def test_shapes_differ() -> None:
    oval, square, parse = (mask_of(shape, 0.1) for shape in ("oval", "square", "parse"))
    assert float((oval - square).abs().mean()) > 0.05 and float((oval - parse).abs().mean()) > 0.05


def test_parsed_face_is_closed_and_keeps_its_place() -> None:
    mask = mask_of("parse", 0.0)[0, 0]
    assert float(mask[302, 200]) == 1.0  # the gap
    assert mask[160, 118:122].tolist() == [0.0, 0.0, 1.0, 1.0]
    assert mask[148:152, 200].tolist() == [0.0, 0.0, 1.0, 1.0]


def test_parsed_face_at_the_crop_border_fades_out() -> None:
    mask = outline(torch.ones(1, 1, 512, 512), 51.2)
    assert float(border(mask).max()) == 0.0 and float(mask[0, 0, 256, 256]) == 1.0


def test_crop_without_a_parsed_face_gets_the_oval() -> None:
    crops = torch.stack([torch.ones(3, 512, 512), torch.zeros(3, 512, 512)])
    masks = crop_mask(RestoreSettings(mask="parse"), crops, Rectangle())
    assert masks.shape == (2, 1, 512, 512)
    assert torch.equal(masks[1:], crop_mask(RestoreSettings(mask="oval")))
    assert not torch.equal(masks[0], masks[1])


def test_parse_without_a_parser_says_what_to_do() -> None:
    with pytest.raises(SettingsError, match=r"expected facexlib's face parser, got none.*choose mask 'oval'"):
        crop_mask(RestoreSettings(mask="parse"), torch.ones(1, 3, 512, 512), None)
    with pytest.raises(InputError, match="expected crops"):
        crop_mask(RestoreSettings(mask="parse"), None, Rectangle())


# --- facexlib's networks -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files with the published networks' keys and random values."""
    pytest.importorskip("facexlib", reason="facexlib is not installed")
    folder = tmp_path_factory.mktemp("parsers")
    torch.manual_seed(3)
    paths = {}
    for layout in (PARSENET, BISENET):
        paths[layout.name] = folder / f"{layout.name}_any_name.pth"
        torch.save(parser._build(layout).state_dict(), paths[layout.name])
    return paths


@pytest.mark.parametrize("name", ["parsenet", "bisenet"])
def test_parser_reads_facexlibs_weights_by_their_keys(weights: dict[str, Path], name: str) -> None:
    parser = open_parser(weights[name], CPU)
    assert parser is not None and parser.name == name
    # A quarter of a crop's side: the networks are convolutional, and ParseNet takes ten seconds for a whole one.
    faces = parser(torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(1)))
    assert faces.shape == (1, 1, 128, 128) and set(faces.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("layout", [PARSENET, BISENET], ids=lambda layout: layout.name)
def test_parser_counts_face_labels_and_no_others(layout: parser.Layout) -> None:
    class Stripes(torch.nn.Module):
        """Column c is labelled c mod 19, whatever the input; returns a tuple as facexlib's networks do."""

        def forward(self, x: Tensor) -> tuple[Tensor, None]:
            labels = (torch.arange(512) % 19).expand(x.shape[0], 512, 512)
            return torch.nn.functional.one_hot(labels, 19).permute(0, 3, 1, 2).float(), None

    faces = parser.FacexlibParser(Stripes(), layout, CPU)(torch.rand(2, 3, 512, 512))
    assert faces.shape == (2, 1, 512, 512)
    labels = {label for label in range(19) if float(faces[0, 0, 0, label]) == 1.0}
    hair, background, cloth = (13, 0, 18) if layout is PARSENET else (17, 0, 16)
    assert labels == set(layout.face) and hair in labels and not {background, cloth} & labels


def test_parser_normalises_as_the_network_was_trained() -> None:
    seen: list[Tensor] = []

    class Record(torch.nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor]:
            seen.append(x)
            return (torch.zeros(1, 19, 512, 512),)

    crops = torch.zeros(1, 3, 512, 512)
    crops[:, 0] = 1.0
    for layout in (PARSENET, BISENET):
        parser.FacexlibParser(Record(), layout, CPU)(crops)
    assert seen[0][0, :, 0, 0].tolist() == pytest.approx([1.0, -1.0, -1.0])
    assert seen[1][0, :, 0, 0].tolist() == pytest.approx([(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225])


def test_parser_refuses_other_files(tmp_path: Path, weights: dict[str, Path]) -> None:
    with pytest.raises(CheckpointError, match="found no file there"):
        open_parser(tmp_path / "nowhere.pth", CPU)
    broken = tmp_path / "broken.pth"
    broken.write_bytes(weights["bisenet"].read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="not a readable weight file"):
        open_parser(broken, CPU)
    torch.save({"other.weight": torch.ones(1)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="neither"):
        open_parser(tmp_path / "other.pth", CPU)
    torch.save([1, 2, 3], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="expected a plain table of tensors, got list"):
        open_parser(tmp_path / "list.pth", CPU)
    short = torch.load(weights["bisenet"], weights_only=True)
    short.pop("cp.conv_avg.bn.weight")
    torch.save(short, tmp_path / "short.pth")
    with pytest.raises(CheckpointError, match="do not fit facexlib's bisenet"):
        open_parser(tmp_path / "short.pth", CPU)


def test_parser_never_runs_pickled_code(tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (marker,)  # type: ignore[return-value]

    torch.save({"a": Payload()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match="not a readable weight file"):
        open_parser(tmp_path / "evil.pth", CPU)
    assert not marker.exists()


def test_no_parser_at_hand_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assets, "find", lambda name, extra_folders=(): None)
    assert open_parser(None, CPU) is None


def test_found_parser_must_be_facexlibs_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, weights: dict[str, Path]) -> None:
    found = tmp_path / "parsing_bisenet.pth"
    found.write_bytes(weights["bisenet"].read_bytes())
    monkeypatch.setattr(assets, "find", lambda name, extra_folders=(): found if name == found.name else None)
    with pytest.raises(CheckpointError, match="expected sha256 468e13ca"):
        open_parser(None, CPU)
    monkeypatch.setattr(assets, "check", lambda path, asset: path)
    parser = open_parser(None, CPU)
    assert parser is not None and parser.name == "bisenet"


def test_missing_facexlib_is_none_when_found_and_a_sentence_when_asked_for(
    monkeypatch: pytest.MonkeyPatch, weights: dict[str, Path]
) -> None:
    def gone(layout: parser.Layout) -> torch.nn.Module:
        raise MissingPackageError("face parsing needs facexlib; pip install facexlib")

    monkeypatch.setattr(parser, "_build", gone)
    monkeypatch.setattr(assets, "find", lambda name, extra_folders=(): weights["bisenet"] if "bisenet" in name else None)
    monkeypatch.setattr(assets, "check", lambda path, asset: path)
    monkeypatch.setitem(assets.ASSETS, weights["bisenet"].name, assets.ASSETS["parsing_bisenet.pth"])
    assert open_parser(None, CPU) is None
    with pytest.raises(MissingPackageError, match="pip install facexlib"):
        open_parser(weights["bisenet"], CPU)
