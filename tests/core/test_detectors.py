"""The detector backends: reading their networks' output, their files, and what they find in real photos."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from lafr_core.errors import CheckpointError, DownloadError, MissingPackageError, SettingsError
from lafr_core.faces.boxes import face_box, landmarks_in, overlap
from lafr_core.faces.detect import detect_faces
from lafr_core.faces.detectors import BEST_FIRST, find_weights, open_detector
from lafr_core.faces.detectors.retinaface import VARIANTS, RetinaFaceDetector, decode, load_network, make_priors
from lafr_core.faces.detectors.scrfd import ScrfdDetector
from lafr_core.faces.detectors.starter import MOVES, STEADY, VAGUE, StarterDetector, close_up, moved_by, pyramid
from lafr_core.faces.networks import closeup
from lafr_core.faces.networks import landmarks as last_look
from lafr_core.faces.networks.detector import StarterDetectorNet, StarterNets, cells, fold
from lafr_core.geometry import similarity, transform
from lafr_core.settings import DETECTORS, RestoreSettings
from lafr_core.store import assets, checkpoint
from lafr_core.types import Detector, Face

SMALL = {"widths": (4, 6, 8, 10), "depths": (1, 1, 1, 1), "neck": 8}


def small_nets() -> StarterNets:
    return StarterNets(SMALL, {"widths": (4, 6, 8, 10)}, {"widths": (4, 6, 8, 10), "neck": 8})


def write_starter(path: Path) -> Path:
    nets = small_nets()
    checkpoint.save(path, "detector", nets, nets.config)
    return path


# --- the starter's network -------------------------------------------------------------------------------------------


def test_cells_lie_in_the_middle_of_the_pixels_they_cover() -> None:
    centres, strides = cells([(2, 3), (1, 2), (1, 1)], torch.device("cpu"))
    assert centres.tolist() == [
        [3.5, 3.5], [11.5, 3.5], [19.5, 3.5], [3.5, 11.5], [11.5, 11.5], [19.5, 11.5],
        [7.5, 7.5], [23.5, 7.5],
        [15.5, 15.5],
    ]  # fmt: skip
    assert strides.tolist() == [8.0] * 6 + [16.0] * 2 + [32.0]


def test_the_network_predicts_per_cell_boxes_around_the_cell() -> None:
    network = StarterDetectorNet(**SMALL).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        out = network(torch.rand(2, 3, 64, 96))
    count = 8 * 12 + 4 * 6 + 2 * 3
    assert out.logits.shape == (2, count)
    assert out.landmarks.shape == (2, count, 5, 2)
    assert bool((out.boxes[..., :2] <= out.centres).all() and (out.boxes[..., 2:] >= out.centres).all())
    assert float(out.logits.sigmoid().mean()) < 0.1  # an untrained network calls few cells a face


def test_folding_keeps_the_output() -> None:
    network = StarterDetectorNet(**SMALL, norm=True)  # type: ignore[arg-type]
    for _ in range(3):  # give the running statistics something to hold
        network(torch.rand(2, 3, 64, 64))
    network.eval()
    folded = fold(network)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    x = torch.rand(1, 3, 64, 64)
    before, after = network(x), folded(x)
    for old, new in zip(before, after, strict=True):
        assert torch.allclose(old, new, atol=1e-3)


def test_a_shifted_picture_shifts_the_predictions() -> None:
    network = StarterDetectorNet(**SMALL).eval()  # type: ignore[arg-type]
    picture = torch.zeros(1, 3, 256, 256)
    picture[..., 96:128, 96:128] = torch.rand(1, 3, 32, 32)
    moved = torch.roll(picture, (32, 64), (-2, -1))

    def peak(pixels: Tensor) -> Tensor:
        out = network(pixels)
        at = (out.logits[0] - network(torch.zeros_like(pixels)).logits[0]).abs()
        return out.landmarks[0, at.argmax()]

    assert torch.allclose(peak(moved) - peak(picture), torch.tensor([64.0, 32.0]), atol=0.02)


def test_folding_the_second_look_keeps_its_output() -> None:
    network = closeup.CloseUpNet((4, 6, 8, 10), norm=True)
    for _ in range(3):
        network(torch.rand(4, 3, 64, 64))
    network.eval()
    x = torch.rand(2, 3, 64, 64)
    for old, new in zip(network(x), closeup.fold(network)(x), strict=True):
        assert torch.allclose(old, new, atol=1e-3)


def test_folding_the_last_look_keeps_its_output() -> None:
    network = last_look.LandmarkNet((4, 6, 8, 10), neck=8, norm=True)
    for _ in range(3):
        network(torch.rand(4, 3, 64, 64))
    network.eval()
    x = torch.rand(2, 3, 64, 64)
    folded = last_look.fold(network)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    for old, new in zip(network(x), folded(x), strict=True):
        assert torch.allclose(old, new, atol=1e-3)


class Fixed(nn.Module):
    """Answers with the same tensor whatever it is given."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, seen: Tensor) -> Tensor:
        return self.answer.expand(len(seen), *self.answer.shape[1:])


def test_a_landmark_is_the_mean_of_the_places_that_sure_cells_point_at() -> None:
    network = last_look.LandmarkNet((4, 6, 8, 10), neck=8)
    maps = torch.zeros(1, 15, 16, 16)
    network.head = Fixed(maps)  # type: ignore[assignment]
    pixels = torch.rand(1, 3, 64, 64)
    # No evidence: about where the template has them; the border cuts the prior's bells off a little.
    assert torch.allclose(network(pixels).landmarks[0], torch.tensor(last_look.template()), atol=3.0)
    maps[0, 2, 3, 5] = 1000.0  # all evidence for the nose in one cell of four pixels: its middle
    assert network(pixels).landmarks[0, 2].tolist() == pytest.approx([4 * 5 + 1.5, 4 * 3 + 1.5])
    maps[0, 5 + 2 * 2, 3, 5], maps[0, 5 + 2 * 2 + 1, 3, 5] = 0.5, -2.0  # it points half a cell right and two cells up
    assert network(pixels).landmarks[0, 2].tolist() == pytest.approx([4 * 5 + 1.5 + 2, 4 * 3 + 1.5 - 8])
    expected = last_look.cells(maps.device)[1][2].view(16, 16)
    maps[0, 2, 3, 7] = 1000.0 + float(expected[3, 5] - expected[3, 7])  # as much evidence two cells further right
    assert network(pixels).landmarks[0, 2, 0].item() == pytest.approx((4 * 5 + 1.5 + 2 + 4 * 7 + 1.5) / 2, abs=0.01)


def test_vagueness_counts_the_cells_that_a_landmark_may_be_in() -> None:
    network = last_look.LandmarkNet((4, 6, 8, 10), neck=8)
    maps = torch.zeros(1, 15, 16, 16)
    maps[0, :5] = -last_look.cells(maps.device)[1].view(5, 16, 16)  # all cells alike for all five
    network.head = Fixed(maps)  # type: ignore[assignment]
    assert network(torch.rand(2, 3, 64, 64)).vagueness.tolist() == pytest.approx([math.log(256)] * 2, abs=1e-4)
    maps[0, 1, 2, :2] += 1000.0  # one of the five in either of two cells
    assert network(torch.rand(1, 3, 64, 64)).vagueness.item() == pytest.approx((4 * math.log(256) + math.log(2)) / 5, abs=1e-4)


class Answer(nn.Module):
    """Answers with what a function makes of the close-ups."""

    def __init__(self, answer: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, seen: Tensor) -> Any:
        return self.answer(seen)


def test_the_last_look_has_the_last_word_on_landmarks() -> None:
    nets = small_nets()
    image, places = torch.rand(3, 90, 120), landmarks_in((30.0, 20.0, 70.0, 80.0))
    faces = [Face(face_box(places), places, 0.9)]
    shown = torch.tensor(last_look.template()) + torch.rand(5, 2)
    nets.landmarks = Answer(lambda seen: last_look.Seen(shown.expand(len(seen), 5, 2), torch.zeros(len(seen))))  # type: ignore[assignment]
    nets.close_up = Answer(lambda seen: closeup.Closer(torch.full((len(seen),), 5.0), seen))  # type: ignore[assignment]
    (face,) = StarterDetector(nets, torch.device("cpu")).exact(image, faces)
    turned = torch.stack([63 - shown[:, 0], shown[:, 1]], dim=-1)[[1, 0, 2, 4, 3]]  # what the mirror image's answer stands for
    wanted = transform(similarity(last_look.template(), places), ((shown + turned) / 2).tolist())
    assert np.allclose(face.landmarks, wanted, atol=1e-4)
    assert face.score == 0.9 and face.box == face_box(face.landmarks)
    nets.landmarks = None
    assert StarterDetector(nets, torch.device("cpu")).exact(image, faces) == faces


@pytest.mark.parametrize(
    ("worst", "vague", "share"),
    [(STEADY[1], VAGUE[1], 1), (STEADY[0], 0, 0), (9, VAGUE[0], 0), (sum(STEADY) / 2, 0, 0.5), (9, sum(VAGUE) / 2, 0.5),
     (sum(STEADY) / 2, sum(VAGUE) / 2, 0.25)],
)  # fmt: skip
def test_a_face_that_wavers_or_shows_no_landmark_loses_its_score(worst: float, vague: float, share: float) -> None:
    nets = small_nets()
    shown = torch.tensor(last_look.template())
    nets.landmarks = Answer(  # the picture and its mirror image count alike
        lambda seen: last_look.Seen(shown.expand(len(seen), 5, 2), torch.tensor([vague - 0.3, vague + 0.3]))
    )  # type: ignore[assignment]

    def logits(seen: Tensor) -> closeup.Closer:
        assert len(seen) == 2 * len(MOVES)
        rows = torch.full((2, len(MOVES)), 8.0)
        rows[0, 3], rows[1, 3] = worst - 2, worst + 2  # one look is worse than the others
        return closeup.Closer(rows.flatten(), seen)

    nets.close_up = Answer(logits)  # type: ignore[assignment]
    places = landmarks_in((30.0, 20.0, 70.0, 80.0))
    (face,) = StarterDetector(nets, torch.device("cpu")).exact(torch.rand(3, 90, 120), [Face(face_box(places), places, 0.8)])
    assert face.score == pytest.approx(0.8 * share, abs=1e-4)


def test_faces_are_looked_at_again_from_a_little_off() -> None:
    places = landmarks_in((30.0, 20.0, 70.0, 80.0))
    eyes, middle = math.dist(places[0], places[1]), np.mean(places, axis=0)
    shifted = np.asarray(moved_by(places, (0.5, -0.25, 1.0)))
    assert np.allclose(shifted - places, [0.5 * eyes, -0.25 * eyes])
    larger = np.asarray(moved_by(places, (0.0, 0.0, 1.2)))
    assert np.allclose(larger - middle, 1.2 * (np.asarray(places) - middle))


def test_a_file_without_the_last_look_is_a_detector_too(tmp_path: Path) -> None:
    nets = StarterNets(SMALL, {"widths": (4, 6, 8, 10)})
    assert set(nets.config) == {"finder", "close_up"}
    checkpoint.save(tmp_path / "two.safetensors", "detector", nets, nets.config)
    detector = open_detector("starter", weights=tmp_path / "two.safetensors")
    assert detector(torch.rand(3, 70, 80), 0.0001)


def test_a_close_up_shows_the_landmarks_where_its_template_has_them() -> None:
    landmarks = landmarks_in((300.0, 200.0, 567.0, 585.0))  # as large as the FFHQ template's face: 8.35 photo pixels a pixel
    image = torch.zeros(3, 700, 800)
    for channel, (x, y) in zip((0, 1, 2), (landmarks[0], landmarks[1], landmarks[4]), strict=True):
        image[channel, round(y) - 12 : round(y) + 13, round(x) - 12 : round(x) + 13] = 1
    shown = close_up(image, similarity(closeup.template(), landmarks))
    assert shown.shape == (3, 64, 64)
    ys, xs = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    for channel, index in zip((0, 1, 2), (0, 1, 4), strict=True):
        weight = shown[channel] / shown[channel].sum()
        assert (float((weight * xs).sum()), float((weight * ys).sum())) == pytest.approx(closeup.template()[index], abs=0.15)


@pytest.mark.parametrize("shift", [-5000.0, 5000.0])
def test_a_close_up_outside_the_photo_shows_its_border(shift: float) -> None:
    image = torch.rand(3, 30, 40)
    matrix = similarity(closeup.template(), landmarks_in((shift, shift, shift + 60, shift + 80)))
    corner = image[:, 0, 0] if shift < 0 else image[:, -1, -1]
    assert torch.allclose(close_up(image, matrix), corner[:, None, None].expand(3, 64, 64), atol=1e-5)


@pytest.mark.parametrize(
    ("size", "count"), [((40, 50), 1), ((256, 200), 2), ((704, 704), 2), ((1024, 700), 3), ((10, 2048), 3)]
)
def test_the_pyramid_makes_every_big_face_small(size: tuple[int, int], count: int) -> None:
    levels = pyramid(torch.rand(3, *size))
    assert len(levels) == count
    for level, (sx, sy) in levels:
        assert (level.shape[-1], level.shape[-2]) == (round(size[1] * sx), round(size[0] * sy))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (33, 65), (2, 3000)])
def test_the_starter_takes_any_size_and_leaves_the_image_alone(size: tuple[int, int]) -> None:
    detector = StarterDetector(small_nets(), torch.device("cpu"))
    image = torch.rand(3, *size)
    before = image.clone()
    found = detector(image, 0.0)
    assert found
    for face in found:  # untrained: whatever it finds must be well formed
        assert all(math.isfinite(v) for v in (*face.box, *(c for p in face.landmarks for c in p)))
    assert torch.equal(image, before)


# --- RetinaFace ------------------------------------------------------------------------------------------------------


def test_priors_are_two_squares_a_cell_in_pixels() -> None:
    priors = make_priors((32, 64))
    assert priors.shape == (2 * (4 * 8 + 2 * 4 + 1 * 2), 4)
    assert priors[:4].tolist() == [[4, 4, 16, 16], [4, 4, 32, 32], [12, 4, 16, 16], [12, 4, 32, 32]]
    assert priors[-1].tolist() == [48, 16, 512, 512]


def test_decoding_reads_offsets_as_retinaface_wrote_them() -> None:
    priors = torch.tensor([[100.0, 50.0, 32.0, 32.0]])
    offsets = torch.tensor([[1.0, -1.0, 5 * math.log(2), 0.0]])
    points = torch.tensor([[0.0, 0, 1, 0, 0, 1, -1, 0, 0, -1]])
    boxes, landmarks = decode(offsets, points, priors)
    # Centre (103.2, 46.8), 64 x 32 pixels; half a pixel less because our integers are pixel centres.
    assert torch.allclose(boxes, torch.tensor([[70.7, 30.3, 134.7, 62.3]]))
    assert torch.allclose(landmarks[0], torch.tensor([[99.5, 49.5], [102.7, 49.5], [99.5, 52.7], [96.3, 49.5], [99.5, 46.3]]))


@pytest.mark.parametrize("name", ["retinaface-mobile0.25", "retinaface-resnet50"])
def test_either_retinaface_network_loads_weights_of_its_keys_and_runs(name: str, tmp_path: Path) -> None:
    retinaface = pytest.importorskip("facexlib.detection.retinaface")
    source = retinaface.RetinaFace(network_name=VARIANTS[name].network, device="cpu")
    state = {f"module.{key}": value for key, value in source.state_dict().items()}
    network = load_network(VARIANTS[name].network, state, tmp_path / "weights.pth")
    detector = RetinaFaceDetector(name, network, torch.device("cpu"))
    for face in detector(torch.rand(3, 70, 41), 0.5)[:3]:
        assert 0.5 <= face.score <= 1
    with pytest.raises(CheckpointError, match="do not fit RetinaFace"):
        load_network(VARIANTS[name].network, {"module.body.x": torch.zeros(1)}, tmp_path / "weights.pth")


def test_a_retinaface_file_that_is_not_the_published_one_is_never_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "detection_Resnet50_Final.pth"
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="expected sha256 6d1de9c2"):
        open_detector("retinaface-resnet50", weights=path)
    with pytest.raises(CheckpointError, match="found no file there"):
        open_detector("retinaface-mobile0.25", weights=tmp_path / "missing.pth")
    with pytest.raises(CheckpointError, match="expected a published RetinaFace file"):
        open_detector("auto", weights=path)


def test_without_facexlib_retinaface_says_what_to_install(monkeypatch: pytest.MonkeyPatch, shared_weights: Path) -> None:
    monkeypatch.setitem(sys.modules, "facexlib.detection.retinaface", None)
    with pytest.raises(MissingPackageError, match="pip install facexlib"):
        open_detector("retinaface-mobile0.25", weights=shared_weights / "retinaface_mobile0.25.pth")


# --- SCRFD -----------------------------------------------------------------------------------------------------------


class FakeScrfd:
    """Stands for insightface's SCRFD object: records what it is given and answers in its format."""

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[int, ...], tuple[int, int], float]] = []
        self.first_pixel: list[int] = []

    def detect(self, bgr: np.ndarray, input_size: tuple[int, int], det_thresh: float) -> tuple[np.ndarray, np.ndarray]:
        self.calls.append((bgr.shape, input_size, det_thresh))
        self.first_pixel = bgr[0, 0].tolist()
        box = np.asarray([[10.0, 20.0, 50.0, 70.0, 0.8]], np.float32)
        points = np.asarray([[[20.0, 35], [40, 35], [30, 45], [22, 58], [38, 58]]], np.float32)
        return box, points


def test_scrfd_gets_bgr_bytes_and_its_answer_becomes_faces() -> None:
    model = FakeScrfd()
    image = torch.zeros(3, 480, 700)
    image[:, 0, 0] = torch.tensor([1.0, 0.5, 0.0])
    (face,) = ScrfdDetector(model)(image, 0.6)
    assert model.first_pixel == [0, 128, 255]
    assert model.calls == [((480, 700, 3), (704, 704), 0.6), ((480, 700, 3), (320, 320), 0.6)]
    assert face.box == (10.0, 20.0, 50.0, 70.0)
    assert face.landmarks[3] == (22.0, 58.0)
    assert face.score == pytest.approx(0.8)


def test_scrfd_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="expected an SCRFD file"):
        open_detector("scrfd", weights=tmp_path / "det_10g.onnx")
    (tmp_path / "det_10g.onnx").write_bytes(b"no model")
    monkeypatch.setitem(sys.modules, "insightface.model_zoo", None)
    with pytest.raises(MissingPackageError, match="pip install insightface"):
        open_detector("scrfd", weights=tmp_path / "det_10g.onnx")


def test_a_damaged_scrfd_file_is_refused_by_name(tmp_path: Path) -> None:
    pytest.importorskip("insightface.model_zoo")
    path = tmp_path / "det_10g.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(CheckpointError, match=r"det_10g\.onnx: not a readable SCRFD file"):
        open_detector("scrfd", weights=path)


# --- opening by name -------------------------------------------------------------------------------------------------


def test_every_detector_of_the_settings_can_be_asked_for() -> None:
    assert set(BEST_FIRST) | {"auto"} == set(DETECTORS)
    with pytest.raises(SettingsError, match="expected one of auto, starter"):
        open_detector("yolo")


@pytest.fixture
def empty_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No weights anywhere but the repository's own."""
    monkeypatch.setattr(assets, "search_folders", lambda extra=(): [tmp_path])
    monkeypatch.setenv("LAFR_MODELS", str(tmp_path))
    monkeypatch.setenv("LAFR_OFFLINE", "1")
    return tmp_path


def test_auto_is_the_starter_when_nothing_else_is_at_hand(empty_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_starter(empty_folders / "starter.safetensors")
    monkeypatch.setattr(assets, "bundled", lambda kind: path)
    assert open_detector("auto").name == "starter"
    assert [find_weights(name) for name in BEST_FIRST] == [None, None, path, None]


def test_auto_prefers_a_better_detector_whose_weights_are_at_hand(empty_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("facexlib.detection.retinaface")
    (empty_folders / "detection_Resnet50_Final.pth").write_bytes(b"some other file")
    # Found, preferred, and then refused: its sha256 is wrong, and a wrong file is never passed over in silence.
    with pytest.raises(CheckpointError, match=r"detection_Resnet50_Final\.pth: expected sha256"):
        open_detector("auto")


def test_auto_passes_over_detectors_whose_package_is_missing(empty_folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_starter(empty_folders / "starter.safetensors")
    monkeypatch.setattr(assets, "bundled", lambda kind: path)
    (empty_folders / "det_10g.onnx").write_bytes(b"")
    (empty_folders / "detection_Resnet50_Final.pth").write_bytes(b"")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert open_detector("auto").name == "starter"


def test_a_detector_asked_for_by_name_says_where_its_weights_come_from(empty_folders: Path) -> None:
    with pytest.raises(DownloadError, match=r"detection_Resnet50_Final\.pth.*LAFR_OFFLINE"):
        open_detector("retinaface-resnet50")
    with pytest.raises(DownloadError, match=r"det_10g\.onnx cannot be downloaded for you"):
        open_detector("scrfd")


def test_auto_tells_a_given_file_by_what_it_is(tmp_path: Path, shared_weights: Path) -> None:
    assert open_detector("auto", weights=write_starter(tmp_path / "any.name")).name == "starter"
    pytest.importorskip("facexlib.detection.retinaface")
    assert open_detector("auto", weights=shared_weights / "retinaface_mobile0.25.pth").name == "retinaface-mobile0.25"


def test_a_starter_file_of_another_kind_or_config_is_refused(tmp_path: Path) -> None:
    network = small_nets()
    checkpoint.save(tmp_path / "vae.safetensors", "vae", network, {})
    with pytest.raises(CheckpointError, match="got a vae file"):
        open_detector("starter", weights=tmp_path / "vae.safetensors")
    checkpoint.save(tmp_path / "odd.safetensors", "detector", network, {"layers": 3})
    with pytest.raises(CheckpointError, match="does not describe the kind of detector that this LAFR knows"):
        open_detector("starter", weights=tmp_path / "odd.safetensors")
    checkpoint.save(
        tmp_path / "wide.safetensors", "detector", network, {**network.config, "close_up": {"widths": (8, 8, 8, 8)}}
    )
    with pytest.raises(CheckpointError, match="tensors do not fit"):
        open_detector("starter", weights=tmp_path / "wide.safetensors")


# --- real photos -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def val_photos(faces_folder: Path) -> list[tuple[Tensor, tuple[tuple[float, float], ...]]]:
    from train.data.photos import load_pixels, read_split

    photos = read_split(faces_folder, "val")[3::24]
    return [(torch.from_numpy(load_pixels(p).copy()).permute(2, 0, 1).float() / 255, p.landmarks) for p in photos]


@pytest.fixture(scope="module")
def starter() -> Detector:
    weights = find_weights("starter")
    if weights is None:
        pytest.skip("needs the starter weights")
    return open_detector("starter", weights=weights)


@pytest.fixture(scope="module", params=["starter", "retinaface-mobile0.25"])
def detector(request: pytest.FixtureRequest) -> Detector:
    if request.param == "starter":
        found: Detector = request.getfixturevalue("starter")
        return found
    pytest.importorskip("facexlib.detection.retinaface")
    folder: Path = request.getfixturevalue("shared_weights")
    return open_detector("retinaface-mobile0.25", weights=folder / "retinaface_mobile0.25.pth")


def close(face: Face, landmarks: tuple[tuple[float, float], ...], share: float) -> bool:
    """Whether the landmarks are right within ``share`` of the eye distance on average, and the box is theirs."""
    points = np.asarray(landmarks)
    error = np.linalg.norm(np.asarray(face.landmarks) - points, axis=1).mean()
    return bool(error < share * np.linalg.norm(points[0] - points[1])) and overlap(face.box, face_box(landmarks)) > 0.5


def test_faces_of_sharp_photos_are_found_once_and_exactly(detector: Detector, val_photos: list) -> None:
    for image, landmarks in val_photos:
        (face,) = detect_faces(image[None], detector, RestoreSettings())
        assert close(face, landmarks, 0.16)


def test_a_real_upside_down_face_is_found_by_turning(starter: Detector, val_photos: list) -> None:
    image, landmarks = val_photos[0]
    height, width = image.shape[-2:]
    upside_down = torch.rot90(image, 2, (-2, -1))[None]
    assert detect_faces(upside_down, starter, RestoreSettings(rotate=False)) == []
    (face,) = detect_faces(upside_down, starter, RestoreSettings())
    back = Face(
        (width - 1 - face.box[2], height - 1 - face.box[3], width - 1 - face.box[0], height - 1 - face.box[1]),
        tuple((width - 1 - x, height - 1 - y) for x, y in face.landmarks),  # type: ignore[arg-type]
        face.score,
    )
    assert close(back, landmarks, 0.2)


def test_a_face_as_large_as_the_photo_and_a_small_one_are_found(detector: Detector, val_photos: list) -> None:
    image, landmarks = val_photos[1]
    x0, y0, x1, y1 = (round(v) for v in face_box(landmarks))
    tight = image[:, max(0, y0 - 40) : y1 + 20, max(0, x0 - 30) : x1 + 30]
    (face,) = detect_faces(tight[None], detector, RestoreSettings())
    assert face.height > 0.6 * tight.shape[-2]
    canvas = torch.full((3, 600, 800), 0.4)
    small = torch.nn.functional.interpolate(image[None], size=(72, 72), mode="bilinear", antialias=True)[0]
    canvas[:, 300:372, 500:572] = small
    (face,) = detect_faces(canvas[None], detector, RestoreSettings())
    assert 500 < face.landmarks[2][0] < 572 and 300 < face.landmarks[2][1] < 372


def test_pictures_without_faces_have_none(detector: Detector) -> None:
    skimage = pytest.importorskip("skimage")
    for name in ("coffee.png", "rocket.jpg"):
        with Image.open(Path(skimage.__file__).parent / "data" / name) as file:
            image = torch.from_numpy(np.asarray(file.convert("RGB")).copy()).permute(2, 0, 1).float() / 255
        assert detect_faces(image[None], detector, RestoreSettings(rotate=False)) == []


def test_the_second_look_makes_landmarks_better(starter: Detector, faces_folder: Path) -> None:
    from train.data.photos import load_pixels, read_split

    assert isinstance(starter, StarterDetector)
    errors: dict[str, list[float]] = {"first": [], "second": []}
    for photo in read_split(faces_folder, "val")[::6]:
        image = torch.from_numpy(load_pixels(photo).copy()).permute(2, 0, 1).float() / 255
        small, scale = pyramid(image)[1]
        with torch.no_grad():
            guess = max(starter.candidates(small, scale, 0.3), key=lambda face: face.score)
            (better,) = starter.closer(image, [guess])
        points = np.asarray(photo.landmarks)
        for name, face in (("first", guess), ("second", better)):
            distance = np.linalg.norm(np.asarray(face.landmarks) - points, axis=1).mean()
            errors[name].append(float(distance / np.linalg.norm(points[0] - points[1])))
    assert np.mean(errors["second"]) < 0.85 * np.mean(errors["first"])


def test_a_mirrored_photo_has_the_mirrored_face(starter: Detector, val_photos: list) -> None:
    image, _ = val_photos[2]
    (face,) = starter(image, 0.5)
    (mirrored,) = starter(image.flip(-1), 0.5)
    width = image.shape[-1]
    back = [(width - 1 - x, y) for x, y in mirrored.landmarks]
    pairs = zip(face.landmarks, [back[i] for i in (1, 0, 2, 4, 3)], strict=True)
    assert max(math.dist(a, b) for a, b in pairs) < 0.06 * face.width


def test_astronaut_is_found(detector: Detector) -> None:
    skimage = pytest.importorskip("skimage")
    image = torch.from_numpy(skimage.data.astronaut().copy()).permute(2, 0, 1).float() / 255
    faces = detect_faces(image[None], detector, RestoreSettings())
    assert len(faces) == 1
    assert 170 < faces[0].landmarks[2][0] < 280 and 80 < faces[0].landmarks[2][1] < 170
