"""Cosines between crops: exact on a known embedder, meaningful on real faces."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lafr_core.errors import CheckpointError, InputError
from lafr_core.faces.identity import StarterEmbedder, cosine, open_embedder
from lafr_core.faces.networks.embedder import StarterEmbedderNet, fold
from lafr_core.store import assets, checkpoint

SMALL = {"widths": (4, 6, 8, 10), "depths": (1, 1, 1), "dimensions": 12}


def small_embedder() -> StarterEmbedder:
    return StarterEmbedder(StarterEmbedderNet(**SMALL), torch.device("cpu"))  # type: ignore[arg-type]


class MeanColour:
    """An embedder whose answer can be worked out by hand: the direction of the mean colour."""

    name = "mean colour"

    def __call__(self, crops: Tensor) -> Tensor:
        return torch.nn.functional.normalize(crops.mean(dim=(2, 3)), dim=1)


def test_cosine_is_pair_by_pair() -> None:
    red, green = torch.zeros(3, 8, 8), torch.zeros(3, 8, 8)
    red[0], green[1] = 1, 0.5
    values = cosine(MeanColour(), torch.stack([red, red, green]), torch.stack([red, green, red + green]))
    assert values == pytest.approx([1.0, 0.0, 0.5 / 1.25**0.5])
    assert all(isinstance(value, float) for value in values)


def test_cosine_of_no_faces_is_no_numbers() -> None:
    assert cosine(MeanColour(), torch.zeros(0, 3, 8, 8), torch.zeros(0, 3, 8, 8)) == []


def test_cosine_needs_pairs() -> None:
    with pytest.raises(InputError, match=r"one shape, got \(2, 3, 8, 8\) and \(1, 3, 8, 8\)"):
        cosine(MeanColour(), torch.zeros(2, 3, 8, 8), torch.zeros(1, 3, 8, 8))


def test_embeddings_are_unit_vectors_and_equal_faces_have_cosine_one() -> None:
    embedder = small_embedder()
    crops = torch.rand(3, 3, 512, 512)
    vectors = embedder(crops)
    assert vectors.shape == (3, 12)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(3), atol=1e-5)
    assert cosine(embedder, crops, crops) == pytest.approx([1.0] * 3, abs=1e-5)


def test_the_embedder_is_differentiable_with_respect_to_the_crop() -> None:
    crop = torch.rand(1, 3, 512, 512, requires_grad=True)
    embedder = small_embedder()
    target = embedder(torch.rand(1, 3, 512, 512)).detach()
    (embedder(crop) * target).sum().backward()
    assert crop.grad is not None
    assert float(crop.grad.abs().sum()) > 0
    inner, corner = crop.grad[..., 150:400, 150:370].abs().mean(), crop.grad[..., :60, :60].abs().mean()
    assert float(inner) > 0 and float(corner) == 0  # the ArcFace template does not see the corners of the crop


def test_a_crop_of_another_layout_is_refused() -> None:
    with pytest.raises(InputError, match=r"RGB crops \(B, 3, S, S\)"):
        small_embedder()(torch.rand(2, 512, 512, 3))


def test_folding_keeps_the_embedding() -> None:
    network = StarterEmbedderNet(**SMALL, norm=True)  # type: ignore[arg-type]
    for _ in range(3):
        network(torch.rand(4, 3, 112, 112))
    network.eval()
    x = torch.rand(2, 3, 112, 112)
    assert torch.allclose(network(x), fold(network)(x), atol=1e-5)


def test_a_saved_embedder_opens_again_and_answers_alike(tmp_path: Path) -> None:
    network = StarterEmbedderNet(**SMALL).eval()  # type: ignore[arg-type]
    checkpoint.save(tmp_path / "e.safetensors", "embedder", network, network.config)
    opened = open_embedder(tmp_path / "e.safetensors", "cpu")
    assert opened is not None
    crops = torch.rand(1, 3, 512, 512)
    assert torch.allclose(opened(crops), StarterEmbedder(network, torch.device("cpu"))(crops), atol=2e-2)  # stored as fp16


def test_what_is_no_embedder_is_refused(tmp_path: Path) -> None:
    network = StarterEmbedderNet(**SMALL)  # type: ignore[arg-type]
    checkpoint.save(tmp_path / "d.safetensors", "detector", network, network.config)
    with pytest.raises(CheckpointError, match="got a detector file"):
        open_embedder(tmp_path / "d.safetensors", "cpu")
    checkpoint.save(tmp_path / "odd.safetensors", "embedder", network, {"depth": 2})
    with pytest.raises(CheckpointError, match="does not describe the kind of embedder that this LAFR knows"):
        open_embedder(tmp_path / "odd.safetensors", "cpu")
    with pytest.raises(CheckpointError, match="found no file there"):
        open_embedder(tmp_path / "missing.safetensors", "cpu")


def test_without_bundled_weights_there_is_no_embedder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(assets, "bundled", lambda kind: tmp_path / f"{kind}.safetensors")
    assert open_embedder(None, "cpu") is None


# --- real faces ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def views(faces_folder: Path) -> tuple[Tensor, Tensor]:
    """Twelve unseen people: sharp crops, and the same moved a little and degraded at medium severity."""
    from lafr_core.images.degrade import degrade
    from train.data.photos import aligned_crop, compose, jitter, load_pixels, read_split

    sharp, poor = [], []
    for number, photo in enumerate(read_split(faces_folder, "val")[::8]):
        g = np.random.default_rng(number)
        pixels = load_pixels(photo)
        sharp.append(aligned_crop(pixels, photo.matrix))
        moved = aligned_crop(pixels, compose(jitter(g), photo.matrix))
        array, _ = degrade(moved.permute(1, 2, 0).numpy(), g, "medium")
        poor.append(torch.from_numpy(array).permute(2, 0, 1))
    return torch.stack(sharp), torch.stack(poor)


def test_the_bundled_embedder_tells_people_apart(views: tuple[Tensor, Tensor]) -> None:
    embedder = open_embedder(None, "cpu")
    if embedder is None:
        pytest.skip("needs the starter embedder")
    sharp, poor = views
    grid = (embedder(sharp) @ embedder(poor).T).numpy()
    same, different = np.diag(grid), grid[~np.eye(len(grid), dtype=bool)]
    assert (same[:, None] > different[None]).mean() > 0.95
    assert same.mean() > different.mean() + 0.3
    assert cosine(embedder, sharp, poor) == pytest.approx(same.tolist(), abs=1e-4)


def test_the_bundled_embedder_is_small() -> None:
    path = assets.bundled("embedder")
    if not path.is_file():
        pytest.skip("needs the starter embedder")
    assert path.stat().st_size <= 2_000_000
