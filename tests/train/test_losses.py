"""Each term of the multi-level loss: its value on a case done by hand, its gradient, and the refusal when weights are
missing.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lafr_core.errors import CheckpointError, InputError
from train.config import Loss
from train.data.drawn import draw_face
from train.judges import losses

SHARED = Path(__file__).parents[3] / "shared" / "weights"


def picture(seed: int, side: int = 6) -> Tensor:
    return torch.rand(2, 3, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def small_network(outputs: int = 4, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, outputs, 3, padding=1), nn.Tanh()).double().requires_grad_(False)


network = small_network()
TERMS = {
    "pixel": lambda x: losses.pixel(x, picture(1)),
    "gradient": lambda x: losses.gradient(x, picture(1)),
    "perceptual": lambda x: losses.perceptual(x, picture(1), lambda p: [network(p), network(p).square()]),
    "identity": lambda x: losses.identity(x, picture(1), lambda p: network(p).flatten(1)),
    "structure_landmarks": lambda x: losses.structure_landmarks(x, picture(1), network),
    "structure_parsing": lambda x: losses.structure_parsing(x, picture(1), network),
    "latent": lambda x: losses.latent(x, picture(1)),
    "commitment": lambda x: losses.commitment(x, picture(1)),
    "code": lambda x: losses.code(
        x, picture(3).flatten(0, 1)[:5, 0, :3], torch.tensor(0.7), torch.arange(72).view(2, 6, 6) % 5
    ),
    "stay": lambda x: losses.stay(x, picture(1), torch.tensor([0.25, 1.0], dtype=torch.float64)),
}


@pytest.mark.parametrize("name", TERMS)
def test_gradients_agree_with_finite_differences(name: str) -> None:
    x = picture(0).requires_grad_()
    assert torch.autograd.gradcheck(TERMS[name], (x,), eps=1e-6, atol=1e-6)
    (gradient,) = torch.autograd.grad(TERMS[name](x), x)
    assert gradient.abs().max() > 0


@pytest.mark.parametrize(
    "name", ["pixel", "gradient", "perceptual", "identity", "structure_landmarks", "structure_parsing", "latent"]
)
def test_equal_pictures_cost_nothing(name: str) -> None:
    assert float(TERMS[name](picture(1))) == pytest.approx(0.0, abs=1e-12)


def test_values_by_hand() -> None:
    a, b = torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)
    a[0, 0, 0, 0] = 1.0
    assert float(losses.pixel(a, b)) == pytest.approx(1 / 12)
    assert float(losses.gradient(a, b)) == pytest.approx(1 / 6 + 1 / 6)
    opposite = losses.identity(torch.ones(1, 1, 1, 1), -torch.ones(1, 1, 1, 1), lambda p: p.flatten(1))
    assert float(opposite) == pytest.approx(2.0)
    # Two codes at distances 0 and 2 (squared), spread 1/2 over two channels, so 1/4 each: softmax of (0, -4)
    value = losses.code(
        torch.tensor([[[[1.0]], [[1.0]]]]),
        torch.tensor([[1.0, 1.0], [0.0, 0.0]]),
        torch.tensor(0.5),
        torch.zeros(1, 1, 1, dtype=torch.long),
    )
    assert float(value) == pytest.approx(math.log(1 + math.exp(-4)), rel=1e-4)
    # Right on its entry a feature costs next to nothing, whatever the width: 64 channels of spread 1 each, 1024 entries.
    codes = torch.randn(1024, 64, generator=torch.Generator().manual_seed(1))
    hit = losses.code(codes[:4].t()[None, :, :, None], codes, torch.tensor(32.0), torch.arange(4).view(1, 4, 1))
    assert float(hit) < 0.05 < 5 < math.log(1024)
    stay = losses.stay(torch.ones(2, 1, 1, 1), torch.zeros(2, 1, 1, 1), torch.tensor([0.0, 1.0]))
    assert float(stay) == pytest.approx(0.5)


def test_weights_scale_terms_and_zero_switches_them_off() -> None:
    critics = losses.Critics(identity=lambda p: network(p).flatten(1))
    on = losses.picture_terms(picture(0), picture(1), critics, Loss(pixel=2.0, identity=0.5))
    assert set(on) == {"pixel", "identity"}
    assert float(on["pixel"]) == pytest.approx(2 * float(losses.pixel(picture(0), picture(1))))
    assert losses.picture_terms(picture(0), picture(1), critics, Loss(pixel=0, identity=0)) == {}
    assert not critics.needed(Loss(pixel=0, identity=0))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (Loss(identity=0.1), "identity loss: needs facexlib's recognition_arcface_ir_se50.pth.*loss.identity_weights is empty"),
        (Loss(identity=0, perceptual=1), "perceptual loss: needs torchvision's vgg16"),
        (Loss(identity=0, structure_landmarks=1), "structure_landmarks loss: needs facexlib's alignment_WFLW_4HG.pth"),
        (
            Loss(identity=0, structure_parsing=1, parsing_weights="/no.pth"),
            "found no file at '/no.pth'.*--loss.structure_parsing 0",
        ),
    ],
)
def test_missing_weights_are_refused_at_the_start(weights: Loss, message: str) -> None:
    with pytest.raises(InputError, match=message):
        losses.open_critics(weights, torch.device("cpu"))


def save(module: nn.Module, path: Path, wrapped: bool = False) -> str:
    """The module's own (random) weights: a file with the keys of the published one."""
    tensors = module.state_dict()
    torch.save({"state_dict": tensors} if wrapped else tensors, path)
    return str(path)


def check_critic(critic: object, side: int = 128) -> None:
    """Runs, depends on the picture, and lets a gradient through."""
    x = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(1)).requires_grad_()
    out = critic(x)  # type: ignore[operator]
    out = out[-1] if isinstance(out, list) else out
    (gradient,) = torch.autograd.grad(out.square().mean(), x)
    assert torch.isfinite(gradient).all() and gradient.abs().max() > 0


def test_landmark_network_loads_facexlib_s_keys(tmp_path: Path) -> None:
    awing = pytest.importorskip("facexlib.alignment.awing_arch")
    file = save(awing.FAN(num_modules=4, num_landmarks=98, device="cpu"), tmp_path / "fan.pth", wrapped=True)
    critics = losses.open_critics(Loss(identity=0, structure_landmarks=1, landmark_weights=file), torch.device("cpu"))
    assert critics.landmarks is not None
    assert critics.landmarks(torch.rand(1, 3, 128, 128)).shape == (1, 98, 64, 64)
    check_critic(critics.landmarks)


def test_parsing_networks_load_by_their_keys(tmp_path: Path) -> None:
    bisenet = pytest.importorskip("facexlib.parsing.bisenet")
    file = save(bisenet.BiSeNet(num_class=19), tmp_path / "bisenet.pth")
    critics = losses.open_critics(Loss(identity=0, structure_parsing=1, parsing_weights=file), torch.device("cpu"))
    assert critics.parsing is not None
    check_critic(critics.parsing)
    parsenet = pytest.importorskip("facexlib.parsing.parsenet")
    other = save(parsenet.ParseNet(in_size=512, out_size=512, parsing_ch=19), tmp_path / "parsenet.pth")
    critics = losses.open_critics(Loss(identity=0, structure_parsing=1, parsing_weights=other), torch.device("cpu"))
    assert critics.parsing is not None and critics.parsing(torch.rand(1, 3, 64, 64)).shape == (1, 19, 512, 512)


def test_perceptual_network_loads_torchvision_s_keys(tmp_path: Path) -> None:
    from torchvision.models import vgg16

    features = nn.Module()
    features.features = vgg16(weights=None).features
    file = save(features, tmp_path / "vgg16.pth")
    critics = losses.open_critics(Loss(identity=0, perceptual=1, perceptual_weights=file), torch.device("cpu"))
    assert critics.perceptual is not None
    assert [m.shape[1] for m in critics.perceptual(torch.rand(1, 3, 64, 64))] == [64, 128, 256, 512]
    check_critic(critics.perceptual, 64)


def test_arcface_loads_facexlib_s_keys(tmp_path: Path) -> None:
    arch = pytest.importorskip("facexlib.recognition.arcface_arch")
    file = save(arch.Backbone(num_layers=50, drop_ratio=0.6, mode="ir_se"), tmp_path / "arcface.pth")
    critics = losses.open_critics(Loss(identity=1, identity_weights=file), torch.device("cpu"))
    assert critics.identity is not None and critics.identity(torch.rand(1, 3, 64, 64)).shape == (1, 512)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the published MobileFaceNet is not here")
def test_mobilefacenet_loads_at_any_crop_size() -> None:
    file = SHARED / "mobilefacenet_foamliu.pt"
    critics = losses.open_critics(Loss(identity=1, identity_weights=str(file)), torch.device("cpu"))
    assert critics.identity is not None
    x = torch.from_numpy(draw_face(1, 512)).permute(2, 0, 1)[None]
    small = torch.nn.functional.interpolate(x, size=(256, 256), mode="bilinear", antialias=True)
    similarity = torch.nn.functional.cosine_similarity(critics.identity(x), critics.identity(small))
    assert float(similarity) > 0.98


def test_damaged_and_wrong_weight_files(tmp_path: Path) -> None:
    bad = tmp_path / "bad.pth"
    bad.write_bytes(b"not a pickle")
    with pytest.raises(CheckpointError, match="not a readable state dict"):
        losses.read_weights(bad)
    torch.save({"a": torch.zeros(1)}, bad)
    with pytest.raises(CheckpointError, match="not the weights of ParseNet"):
        losses.open_critics(Loss(identity=0, structure_parsing=1, parsing_weights=str(bad)), torch.device("cpu"))
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  bad.pth\n")
    with pytest.raises(CheckpointError, match="expected sha256 0000"):
        losses.read_weights(bad)
