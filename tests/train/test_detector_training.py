"""What the starter detector and embedder are taught: labels that lie on the pixels, losses worked out by hand; their runs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from kill_test import same
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from benchmarks.embedder import area_under_curve
from lafr_core.errors import CheckpointError
from lafr_core.faces.boxes import face_box, overlap
from lafr_core.faces.detectors import open_detector
from lafr_core.faces.identity import open_embedder
from lafr_core.faces.networks import closeup, landmarks
from lafr_core.faces.networks.detector import Predictions
from lafr_core.geometry import transform
from lafr_core.store import checkpoint
from train import config
from train.data import composites
from train.data.photos import read_split
from train.engine import checkpoints, loop
from train.tasks import closeup as closeup_training
from train.tasks import detector as detector_training
from train.tasks import embedder as embedder_training
from train.tasks import landmarks as landmark_training

POINTS = ((150.0, 170.0), (230.0, 160.0), (195.0, 215.0), (165.0, 260.0), (235.0, 250.0))
COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255))


@pytest.fixture(scope="module")
def portraits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one gray photo of 400x420 pixels with a coloured disc on each landmark."""
    folder = tmp_path_factory.mktemp("faces")
    (folder / "train").mkdir()
    photo = Image.new("RGB", (400, 420), (90, 90, 90))
    draw = ImageDraw.Draw(photo)
    for (x, y), colour in zip(POINTS, COLOURS, strict=True):
        draw.ellipse((x - 12, y - 12, x + 12, y + 12), fill=colour)
    photo.save(folder / "train" / "drawn.png")
    names = ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")
    header = "file,split,source,licence,width,height," + ",".join(f"{n}_{axis}" for n in names for axis in "xy")
    row = "train/drawn.png,train,drawn,none,400,420," + ",".join(f"{v}" for point in POINTS for v in point)
    (folder / "faces.csv").write_text(f"{header}\n{row}\n")
    return folder


@pytest.fixture(scope="module")
def library(portraits: Path) -> composites.Library:
    return composites.open_library(config.Data(source=str(portraits)))


def disc_centre(pixels: np.ndarray, colour: tuple[int, int, int]) -> tuple[float, float]:
    """Where the disc of ``colour`` lies, in pixel-centre coordinates."""
    distance = np.abs(pixels.astype(float) - np.asarray(colour)).sum(-1)
    weight = np.clip(1 - distance / 150, 0, 1)
    ys, xs = np.mgrid[: pixels.shape[0], : pixels.shape[1]]
    return float((weight * xs).sum() / weight.sum()), float((weight * ys).sum() / weight.sum())


@pytest.mark.parametrize(("size", "degrees"), [(150.0, 0.0), (120.0, 35.0), (60.0, -90.0), (200.0, 10.0)])
def test_labels_lie_on_the_pixels(library: composites.Library, size: float, degrees: float) -> None:
    matrix = composites.placement(library, 0, size, degrees, (110.0, 120.0))
    view = np.asarray(library.view(0, matrix, (224, 224)))
    label = composites.label(library, 0, matrix, 224)
    assert label is not None and label.certain
    for point, colour in zip(label.landmarks, COLOURS, strict=True):
        assert disc_centre(view, colour) == pytest.approx(point, abs=0.6)
    part = np.asarray(library.view(0, matrix, (100, 90), (60, 70)))
    assert np.abs(part.astype(int) - view[70:160, 60:160].astype(int)).max() <= 1


def test_placement_gives_the_face_the_size_and_middle_asked_for(library: composites.Library) -> None:
    matrix = composites.placement(library, 0, 80.0, 0.0, (100.0, 60.0))
    x0, y0, x1, y1 = face_box(transform(matrix, POINTS))
    assert ((x0 + x1) / 2, (y0 + y1) / 2) == pytest.approx((100.0, 60.0))
    assert max(x1 - x0, y1 - y0) == pytest.approx(80.0)


def test_mirroring_exchanges_left_and_right() -> None:
    face = composites.Labelled((10.0, 5.0, 30.0, 40.0), POINTS, True)
    flipped = composites.mirrored(face, 400)
    assert flipped.box == (369.0, 5.0, 389.0, 40.0)
    assert flipped.landmarks[0] == (399 - 230.0, 160.0) and flipped.landmarks[3] == (399 - 235.0, 250.0)
    assert composites.mirrored(flipped, 400) == face


def test_a_face_mostly_outside_is_uncertain_and_one_hardly_inside_is_none(library: composites.Library) -> None:
    def at(x: float) -> composites.Labelled | None:
        return composites.label(library, 0, composites.placement(library, 0, 80.0, 0.0, (x, 100.0)), 224)

    inside, half, outside = at(100.0), at(0.0), at(-60.0)
    assert inside is not None and inside.certain
    assert half is not None and not half.certain
    assert outside is None


def test_samples_are_pictures_with_faces_where_they_say(library: composites.Library) -> None:
    g = np.random.default_rng(5)
    counts = []
    for _ in range(12):
        pixels, faces = composites.sample(g, library, 128)
        assert pixels.shape == (128, 128, 3) and pixels.min() >= 0 and pixels.max() <= 1
        # Mirrored faces keep their mirrored box; the template is not quite symmetric, so it is not quite the recomputed one.
        assert all(overlap(face_box(face.landmarks), face.box) > 0.9 for face in faces)
        counts.append(len(faces))
    assert min(counts) == 0 and max(counts) >= 2


def test_cells_near_the_middle_answer_for_a_face_of_their_level() -> None:
    centres = torch.tensor([[19.5, 19.5], [27.5, 19.5], [59.5, 19.5], [23.5, 23.5]])
    strides = torch.tensor([8.0, 8.0, 8.0, 32.0])
    boxes = torch.tensor([[[10.0, 8.0, 34.0, 38.0], [50.0, 10.0, 70.0, 30.0]]])
    index, unsure = detector_training.assign(centres, strides, boxes, torch.tensor([[1.0, 0.0]]))
    assert index.tolist() == [[0, 0, -1, -1]]  # stride 32 is not for a face of 30 pixels
    assert unsure.tolist() == [[False, False, True, False]]  # the second face is uncertain: neither face nor background


def test_generalised_iou_by_hand() -> None:
    a = torch.tensor([[0.0, 0, 4, 4], [0, 0, 2, 2]])
    b = torch.tensor([[2.0, 0, 6, 4], [4, 0, 6, 2]])
    iou, generalised = detector_training.giou(a, b)
    assert iou.tolist() == pytest.approx([8 / 24, 0])
    assert generalised.tolist() == pytest.approx([8 / 24, -4 / 12])


def test_a_perfect_prediction_costs_nothing_but_its_score() -> None:
    centres, strides = torch.tensor([[19.5, 19.5], [91.5, 91.5]]), torch.tensor([8.0, 8.0])
    boxes = torch.tensor([[[8.0, 5.0, 32.0, 35.0]]])
    points = torch.tensor([[[[12.0, 14], [26, 14], [19, 20], [14, 27], [25, 27]]]])
    shown = Predictions(torch.tensor([[9.0, -9.0]]), boxes.expand(1, 2, 4), points[0].expand(1, 2, 5, 2), centres, strides)
    parts = detector_training.losses(shown, boxes, points[0][None], torch.ones(1, 1))
    assert float(parts["box"]) == pytest.approx(0, abs=1e-6)
    assert float(parts["landmarks"]) == pytest.approx(0, abs=1e-6)
    assert float(parts["score"]) < 1e-3


def test_close_ups_are_labelled_where_the_pixels_are(library: composites.Library) -> None:
    g = np.random.default_rng(0)
    for _ in range(4):
        image, points = closeup_training.positive(g, library)
        pixels = np.asarray(image)
        for (x, y), colour in zip(points.tolist(), COLOURS, strict=True):
            assert disc_centre(pixels, colour) == pytest.approx((x, y), abs=1.2)


def test_close_up_moves_turn_about_the_middle() -> None:
    move = closeup_training.about_middle(90.0, 2.0, (3.0, 0.0))
    middle = (closeup.SIDE - 1) / 2
    centre, right = transform(move, [(middle, middle), (middle + 1, middle)])
    assert centre == pytest.approx((middle + 3, middle))
    assert right == pytest.approx((middle + 3, middle + 2))


def test_virtual_people_are_mixtures() -> None:
    faces = torch.zeros(2, 3, embedder_training.SIDE, embedder_training.SIDE, dtype=torch.uint8)
    faces[1] = 200
    mixed = embedder_training.mix(np.random.default_rng(3), faces)
    assert mixed.shape == faces.shape[1:] and mixed.dtype == torch.uint8
    assert 0 < float(mixed.float().mean()) < 200


def test_disturbed_faces_stay_faces_in_range() -> None:
    faces = (torch.rand(16, 3, embedder_training.SIDE, embedder_training.SIDE) * 255).to(torch.uint8)
    crops = embedder_training.disturbed(np.random.default_rng(0), faces)
    assert crops.shape == (16, 3, 112, 112)
    assert float(crops.min()) >= 0 and float(crops.max()) <= 1


def test_the_relation_loss_sees_what_the_cosine_loss_cannot() -> None:
    wanted = torch.eye(3)
    assert all(float(part) == pytest.approx(0) for part in embedder_training.losses(wanted, wanted).values())
    merged = torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [0, 0, 1.0]])
    parts = embedder_training.losses(merged, wanted)
    assert float(parts["cosine"]) == pytest.approx(1 / 3)
    assert float(parts["relation"]) == pytest.approx(2 / 9)


@pytest.mark.parametrize(
    ("same", "different", "area"), [([0.9, 0.8], [0.1, 0.2], 1.0), ([0.5], [0.5], 0.5), ([0.1, 0.9], [0.5], 0.5)]
)
def test_area_under_the_curve_by_hand(same: list[float], different: list[float], area: float) -> None:
    assert area_under_curve(np.asarray(same), np.asarray(different)) == pytest.approx(area)


def test_the_list_of_crowded_portraits_names_real_files(faces_folder: Path) -> None:
    names = {photo.path.stem for photo in read_split(faces_folder, "train")}
    assert set(composites.CROWDED) <= names


# --- runs ------------------------------------------------------------------------------------------------------------

RUNS: dict[str, Callable[[config.Config], Path]] = {
    "detector": detector_training.run,
    "closeup": closeup_training.run,
    "landmarks": landmark_training.run,
    "embedder": embedder_training.run,
}


def settings(source: Path, out: Path, stage: str, **overrides: object) -> config.Config:
    """Four steps of a net on two small samples a step, a checkpoint every other."""
    values = {"data.source": source, "data.workers": 0, "log.out": out, "log.tracker": "none", "log.plots": False,
              "log.save_every": 2, "log.every": 2, f"{stage}.steps": 4, f"{stage}.batch": 2, f"{stage}.warmup": 1,
              "detector.canvas": 64, "closeup.mined": 2, "embedder.virtual": 3, **overrides}  # fmt: skip
    return config.parse([part for key, value in values.items() for part in (f"--{key}", str(value))])


@pytest.mark.parametrize(
    ("stage", "optimizer"), [("detector", "adamw"), ("closeup", "muon"), ("landmarks", "muon"), ("embedder", "muon")]
)
def test_a_stopped_run_goes_on_to_the_same_file(
    portraits: Path,
    tmp_path: Path,
    random_weights: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    optimizer: str,
) -> None:
    monkeypatch.setattr(embedder_training, "load_mobilefacenet", lambda _: lambda crops: crops.mean(1).flatten(1)[:, :128])
    # Mixing needs two people: the one photo twice.
    monkeypatch.setattr(embedder_training, "labelled_photos", lambda data: read_split(Path(data.source), "train") * 2)
    given = {"closeup.finder": random_weights["detector"], "landmarks.detector": random_weights["detector"]}
    conf = settings(portraits, tmp_path, stage, **{f"{stage}.optimizer": optimizer, **given})
    path = RUNS[stage](conf)
    whole, written = checkpoints.load_state(tmp_path / stage / "step_00000004"), load_file(path)
    assert (tmp_path / stage / "files.txt").read_text().splitlines()[0] == "drawn.png"
    shutil.rmtree(tmp_path / stage / "step_00000004")
    path.unlink()
    assert RUNS[stage](conf) == path
    assert same(whole, checkpoints.load_state(tmp_path / stage / "step_00000004")) == []
    assert same(written, load_file(path)) == []
    if stage in ("closeup", "landmarks"):
        assert open_detector("starter", weights=path).name == "starter"
    if stage == "embedder":
        assert open_embedder(path, "cpu") is not None


def test_the_close_ups_file_keeps_the_finder_and_expects_few_faces(
    portraits: Path, tmp_path: Path, random_weights: dict[str, Path]
) -> None:
    """The finder's tensors are the given file's; the score is moved by the odds that the second look meets in a photo."""
    conf = settings(portraits, tmp_path, "closeup", **{"closeup.finder": random_weights["detector"]})
    path = closeup_training.run(conf)
    finder, _, _ = closeup_training.open_finder(path)
    given, _, _ = closeup_training.open_finder(random_weights["detector"])
    assert all(torch.equal(a, b) for a, b in zip(finder.state_dict().values(), given.state_dict().values(), strict=True))
    state = checkpoints.load_state(tmp_path / "closeup" / "step_00000004")
    learned = state["average"]["out.bias"][0]
    stored = checkpoint.load(path, "detector").tensors["close_up.out.bias"][0]
    assert float(learned - stored.float()) == pytest.approx(np.log((0.55 / 0.45) / (0.1 / 0.9)), abs=2e-3)


def test_going_on_starts_from_the_given_second_look(portraits: Path, tmp_path: Path, random_weights: dict[str, Path]) -> None:
    """At a learning rate of next to nothing what comes out is what went in, the score's offset included."""
    given = random_weights["detector"]
    still = {"closeup.go_on": True, "closeup.lr": 1e-12, "closeup.weight_decay": 0}
    path = closeup_training.run(settings(portraits, tmp_path / "on", "closeup", **{"closeup.finder": given, **still}))
    before, after = load_file(given), load_file(path)
    assert all(torch.allclose(before[name].float(), after[name].float(), atol=2e-3) for name in before)
    finder, _, _ = closeup_training.open_finder(given)
    checkpoint.save(tmp_path / "finder.safetensors", "detector", finder, finder.config)
    conf = settings(portraits, tmp_path / "no", "closeup", **{"closeup.finder": tmp_path / "finder.safetensors", **still})
    with pytest.raises(CheckpointError, match="holds a finder alone"):
        closeup_training.run(conf)


def test_the_last_look_joins_the_given_networks(portraits: Path, tmp_path: Path, random_weights: dict[str, Path]) -> None:
    given = random_weights["detector"]
    path = landmark_training.run(settings(portraits, tmp_path, "landmarks", **{"landmarks.detector": given}))
    before, after = load_file(given), load_file(path)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert {name.partition(".")[0] for name in after.keys() - before.keys()} == {"landmarks"}
    finder, _, _ = closeup_training.open_finder(given)
    checkpoint.save(tmp_path / "finder.safetensors", "detector", finder, finder.config)
    with pytest.raises(CheckpointError, match="holds a finder alone; give a whole detector"):
        landmark_training.run(
            settings(portraits, tmp_path, "landmarks", **{"landmarks.detector": tmp_path / "finder.safetensors"})
        )


# --- faces of the last look ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def faces(library: composites.Library) -> landmark_training.Portraits:
    return landmark_training.Portraits(library)


@pytest.mark.parametrize("shape_noise", [0.0, 1.0])
def test_labels_of_bent_and_mixed_faces_lie_on_the_pixels(faces: landmark_training.Portraits, shape_noise: float) -> None:
    for seed in range(4):
        image, points = landmark_training.close_up(np.random.default_rng(seed), faces, bend=shape_noise, mix=0.5)
        for point, colour in zip(points, COLOURS, strict=True):
            assert disc_centre(np.asarray(image), colour) == pytest.approx(tuple(point), abs=0.8)


def test_moving_landmarks_carries_them_exactly_and_leaves_what_is_far() -> None:
    points = np.asarray(landmarks.template())
    moves = np.random.default_rng(0).normal(0, 2, (5, 2))
    moved = landmark_training.carried(np.concatenate([points, [[500.0, 500.0]]]), points, moves)
    assert np.allclose(moved[:5], points + moves, atol=0.02)
    assert np.allclose(moved[5], 500)
    assert np.array_equal(landmark_training.carried(points, points, np.zeros((5, 2))), points)


def test_two_portraits_meet_at_one_shape(faces: landmark_training.Portraits) -> None:
    """Two people whose landmarks differ: where both are seen, the discs of either lie on the same points."""
    other = faces.points[0] + np.asarray([[1.5, 0], [0, 1.5], [-1.5, 0], [0, -1.5], [1.5, 1.5]])
    both = object.__new__(landmark_training.Portraits)
    away = (landmark_training.WIDE - 1) / 2 - landmark_training.FINER * (closeup.SIDE - 1) / 2
    drawn = Image.new("RGB", (landmark_training.WIDE, landmark_training.WIDE), (90, 90, 90))
    for (x, y), colour in zip(other * landmark_training.FINER + away, COLOURS, strict=True):
        ImageDraw.Draw(drawn).ellipse((x - 4, y - 4, x + 4, y + 4), fill=colour)
    both.views = torch.stack([faces.views[0], torch.from_numpy(np.asarray(drawn).copy()).permute(2, 0, 1)])
    both.points = np.stack([faces.points[0], other])
    for seed in range(6):
        image, points = landmark_training.close_up(np.random.default_rng(seed), both, bend=1.0, mix=1.0)
        for point, colour in zip(points, COLOURS, strict=True):
            assert disc_centre(np.asarray(image), colour) == pytest.approx(tuple(point), abs=0.8)


def test_the_error_counts_in_each_faces_own_eye_distance() -> None:
    points = torch.tensor(landmarks.template())[None].repeat(2, 1, 1)
    points[1] = (points[1] - 31.5) / 2 + 31.5  # half as large
    off = points + torch.tensor([3.0, 4.0])
    assert landmark_training.error(off, points).item() == pytest.approx((5 / 24 + 5 / 12) / 2, rel=1e-3)


def test_averages_take_the_normalisation_statistics_along() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.BatchNorm2d(1))
    average = loop.Average(network, decay=0.9)
    network(torch.full((2, 1, 4, 4), 5.0))
    average.update(0)  # decay 0.1
    mean = float(network[1].running_mean)
    assert mean != 0
    assert float(average.slow["1.running_mean"]) == pytest.approx(0.9 * mean)
    with average.in_place():
        assert float(network[1].running_mean) == pytest.approx(0.9 * mean)
    assert float(network[1].running_mean) == mean


def test_bending_keeps_the_middle_and_stretches() -> None:
    middle = (closeup.SIDE - 1) / 2
    bend = closeup_training.bent(np.random.default_rng(1), 0.1)
    centre, right = transform(bend, [(middle, middle), (middle + 1, middle)])
    assert centre == pytest.approx((middle, middle))
    assert abs(right[0] - centre[0] - 1) > 1e-3
    assert closeup_training.bent(np.random.default_rng(1), 0.0) == ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))


def test_a_sample_is_the_same_whenever_it_is_asked_for(portraits: Path, library: composites.Library) -> None:
    conf = config.parse(["--data.source", str(portraits), "--detector.canvas", "64"])
    samples = detector_training.Composites(conf, library)
    first = samples[7]
    samples[3]
    assert all(torch.equal(value, samples[7][name]) for name, value in first.items())
    assert first["pixels"].shape == (3, 64, 64) and not torch.equal(first["pixels"], samples[8]["pixels"])
