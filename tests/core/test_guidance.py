"""Identity guidance: the gradient is the right one, weight 0 is nothing, and a host's inference mode does not cut it off."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lafr_core.errors import InputError
from lafr_core.latent import guidance


class Directions(nn.Module):
    """Embedder stand-in: mean colour through a fixed matrix, to the unit sphere."""

    name = "directions"

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(3, 5, bias=False)
        with torch.no_grad():
            self.map.weight.copy_(torch.linspace(-1, 2, 15).reshape(5, 3) ** 2)

    def forward(self, crops: Tensor) -> Tensor:
        return F.normalize(self.map(crops.mean((2, 3))), dim=1)


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(4, 3, 1)
        with torch.no_grad():
            self.mix.weight.copy_(torch.linspace(-1, 1, 12).reshape(3, 4, 1, 1))
            self.mix.bias.fill_(0.5)

    def forward(self, latents: Tensor) -> Tensor:
        return self.mix(latents)


def make(seed: int = 0, rows: int = 2) -> tuple[Tensor, Decoder, Directions, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x0 = torch.randn(rows, 4, 6, 5, generator=generator)
    reference = F.normalize(torch.randn(rows, 5, generator=generator), dim=1)
    return x0, Decoder(), Directions(), reference


def cosines(x0: Tensor, decode: nn.Module, embed: nn.Module, reference: Tensor) -> Tensor:
    with torch.no_grad():
        return (embed(decode(x0).clamp(0, 1)) * reference).sum(1)


def test_gradient_is_the_slope_of_the_distance() -> None:
    x0, decode, embed, reference = (part.double() for part in make())
    gradient = guidance.identity_gradient(x0, decode.float(), embed.float(), reference.float())
    decode, embed = decode.double(), embed.double()
    step = 1e-5
    for row, channel, y, x in ((0, 1, 2, 3), (1, 3, 5, 0)):
        values = []
        for sign in (1, -1):
            moved = x0[row : row + 1].clone()
            moved[0, channel, y, x] += sign * step
            with torch.no_grad():
                values.append(guidance.distance(decode(moved), embed, reference[row]).item())
        assert gradient[row, channel, y, x].item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-3, abs=1e-7)


def test_the_views_show_one_face_four_times() -> None:
    pixels = torch.arange(3 * 64 * 96, dtype=torch.float32).reshape(1, 3, 64, 96)
    seen = guidance.views(pixels)
    assert seen.shape == (4, 3, 64, 96)
    assert torch.equal(seen[0], pixels[0])
    assert torch.equal(seen[1, :, 1:, :-1], pixels[0, :, :-1, :-1].flip(-1))  # one pixel down right, then mirrored
    assert torch.equal(seen[2, :, :-1, :-1], pixels[0, :, 1:, 1:])
    assert torch.allclose(seen[3, :, 8:-8, 8:-8], pixels[0, :, 8:-8, 8:-8], rtol=1e-3)  # a ramp survives the coarse view
    stain = torch.zeros(1, 3, 64, 96)
    stain[..., 32, 48] = 1
    assert float(guidance.views(stain)[3].max()) < 0.1


def test_guiding_raises_the_cosine_of_every_row_and_stays_within_the_radius() -> None:
    x0, decode, embed, reference = make()
    kept = x0.clone()
    guided = guidance.guide(x0, decode, embed, reference, 0.5)
    assert (cosines(guided, decode, embed, reference) > cosines(x0, decode, embed, reference)).all()
    rms = (guided - x0).pow(2).mean((1, 2, 3)).sqrt()
    assert (rms > 0).all() and (rms <= 0.5 * guidance.RADIUS * 1.001).all()
    assert torch.equal(x0, kept)


def test_more_weight_may_move_further() -> None:
    x0, decode, embed, reference = make()
    moves = [(guidance.guide(x0, decode, embed, reference, w) - x0).abs().mean().item() for w in (0.2, 0.6, 1.0)]
    assert moves[0] < moves[1] < moves[2]


class Rippled(Directions):
    """An embedder that a step of fixed length leaps over: its answer turns round within a tenth of the gray scale."""

    def forward(self, crops: Tensor) -> Tensor:
        return F.normalize(self.map(torch.sin(40 * crops.mean((2, 3)))) + 0.1, dim=1)


@pytest.mark.parametrize("weight", [0.05, 0.25, 1.0, 4.0, 10.0])
@pytest.mark.parametrize("seed", range(6))
def test_no_row_comes_back_less_like_its_reference(weight: float, seed: int) -> None:
    """The old harm: a step of RMS 0.1 x weight along a normalised gradient, whatever the distance was."""
    x0, decode, _, reference = make(seed, rows=3)
    embed = Rippled()
    before, after = (cosines(x, decode, embed, reference) for x in (x0, guidance.guide(x0, decode, embed, reference, weight)))
    assert (after >= before).all()


def test_pulling_stops_where_two_photos_of_one_person_are() -> None:
    x0, decode, embed, _ = make(rows=1)
    reference = embed(decode(x0).clamp(0, 1)).detach()
    tilt = F.normalize(torch.linspace(1, -1, 5), dim=0)[None]
    near = F.normalize(reference + 0.3 * tilt, dim=1)
    assert guidance.SAME_PERSON < cosines(x0, decode, embed, near).item() < 0.99
    assert torch.equal(guidance.guide(x0, decode, embed, near, 1.0), x0)


def test_the_callers_dtype_comes_back() -> None:
    x0, decode, embed, reference = make()
    guided = guidance.guide(x0.half(), decode, embed, reference, 0.5)
    assert guided.dtype == torch.float16
    start = cosines(x0.half().float(), decode, embed, reference)
    assert (cosines(guided.float(), decode, embed, reference) >= start).all()


@pytest.mark.parametrize("weight", [-0.1, float("nan")])
def test_a_weight_that_is_none_is_refused(weight: float) -> None:
    with pytest.raises(InputError, match="identity weight: expected 0 or more"):
        guidance.guide(*make(), weight)


def test_weight_zero_is_the_very_same_tensor_and_evaluates_nothing() -> None:
    def explode(_: Tensor) -> Tensor:
        raise AssertionError("evaluated")

    x0, _, embed, reference = make()
    assert guidance.guide(x0, explode, embed, reference, 0.0) is x0


def test_rows_do_not_influence_each_other() -> None:
    x0, decode, embed, reference = make(rows=3)
    whole = guidance.identity_gradient(x0, decode, embed, reference)
    alone = guidance.identity_gradient(x0[1:2], decode, embed, reference[1:2])
    assert torch.equal(whole[1:2], alone)


def test_one_reference_serves_all_rows_and_no_rows_are_fine() -> None:
    x0, decode, embed, reference = make()
    shared = guidance.identity_gradient(x0, decode, embed, reference[0])
    assert torch.equal(shared, guidance.identity_gradient(x0, decode, embed, reference[:1].expand(2, -1)))
    assert guidance.identity_gradient(x0[:0], decode, embed, reference[0]).shape == (0, 4, 6, 5)


def test_works_inside_a_hosts_inference_mode_once_the_weights_are_ordinary() -> None:
    expected = guidance.identity_gradient(*make())
    with torch.inference_mode():
        x0, decode, embed, reference = make()
        assert x0.is_inference() and decode.mix.weight.is_inference()
        with pytest.raises(InputError, match=r"ordinary\(\)"):
            guidance.identity_gradient(x0, decode, embed, reference)
        before = decode.mix.weight.clone()
        gradient = guidance.identity_gradient(x0, guidance.ordinary(decode), guidance.ordinary(embed), reference)
    assert torch.equal(gradient, expected)
    assert torch.equal(decode.mix.weight, before) and not decode.mix.weight.is_inference()


def test_ordinary_leaves_ordinary_weights_alone() -> None:
    decode = Decoder()
    weight = decode.mix.weight
    assert guidance.ordinary(decode).mix.weight is weight


def test_ordinary_takes_buffers_along() -> None:
    with torch.inference_mode():
        norm = nn.BatchNorm2d(2)
    assert not guidance.ordinary(norm).running_mean.is_inference()


def test_a_cut_gradient_is_named() -> None:
    x0, decode, embed, reference = make()
    with pytest.raises(InputError, match="no gradient reaches the latent"):
        guidance.identity_gradient(x0, lambda z: decode(z.detach()).detach(), embed.requires_grad_(False), reference)


def test_a_broken_decoder_is_named() -> None:
    x0, decode, embed, reference = make()
    with pytest.raises(InputError, match="not finite"):
        guidance.identity_gradient(x0, lambda z: decode(z) * float("nan"), embed, reference)


def test_reference_embedding_is_the_mean_direction() -> None:
    embed = Directions()
    crops = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    mean = guidance.reference_embedding(embed, crops)
    assert mean.norm().item() == pytest.approx(1.0, abs=1e-6)
    assert torch.allclose(mean, F.normalize(embed(crops).mean(0), dim=0))
    with pytest.raises(InputError, match="at least one face crop"):
        guidance.reference_embedding(embed, crops[:0])


def test_reference_count_must_fit() -> None:
    x0, decode, embed, reference = make(rows=3)
    with pytest.raises(InputError, match="one vector a latent"):
        guidance.identity_gradient(x0, decode, embed, reference[:2])


def test_window_is_inclusive() -> None:
    assert [guidance.in_window(p, 0.2, 0.6) for p in (0.1, 0.2, 0.6, 0.61)] == [False, True, True, False]


class Valley(nn.Module):
    """Embedder stand-in: the first view is always as like the target (1, 0); the others most where the picture's mean, or that
    of one of its places, is a little above a half."""

    name = "valley"

    def __init__(self, steepness: float, best: float, one_place: bool = False) -> None:
        super().__init__()
        self.steepness, self.best, self.one_place = steepness, best, one_place

    def forward(self, crops: Tensor) -> Tensor:
        light = crops[:, 0, 8, 8] if self.one_place else crops.mean((1, 2, 3))
        cosine = 0.8 - self.steepness * (light - self.best).square()
        cosine = torch.where(torch.arange(len(crops)) == 0, cosine if self.one_place else torch.full_like(cosine, 0.8), cosine)
        return torch.stack([cosine, (1 - cosine.square()).clamp_min(1e-6).sqrt()], dim=1)


def test_no_row_comes_back_with_views_that_are_less_like_its_reference() -> None:
    """Every step tried goes past the narrow best place, and the face itself is as like as before all along."""
    x0, target = torch.zeros(1, 4, 8, 8), torch.tensor([1.0, 0.0])
    decode = lambda latents: 0.5 + latents[:, :3]
    assert torch.equal(guidance.guide(x0, decode, Valley(10.0, 0.501), target, 1.0), x0)
    moved = guidance.guide(x0, decode, Valley(10.0, 0.6), target, 1.0)  # and where it is wider they are nearer
    assert not torch.equal(moved, x0)


def test_a_move_is_smooth_though_one_place_alone_would_do() -> None:
    x0, target = torch.zeros(1, 4, 17, 17), torch.tensor([1.0, 0.0])
    moved = guidance.guide(x0, lambda latents: 0.5 + latents[:, :3], Valley(0.5, 0.9, one_place=True), target, 1.0)[0, 0]
    assert moved[8, 8] > 0 and moved[8, 7] > 0.9 * moved[8, 8] and moved[8, 4] > 0.6 * moved[8, 8]
