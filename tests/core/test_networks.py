"""The networks' contracts on tiny random weights: shapes, no-op starts, the fidelity knob, the codebook's look-up."""

from __future__ import annotations

import pytest
import torch

from lafr_core.errors import InputError
from lafr_core.latent.networks.adapter import AdapterNet
from lafr_core.latent.networks.blocks import Attention, Residual
from lafr_core.latent.networks.codebook import Codebook
from lafr_core.latent.networks.confidence import ConfidenceNet
from lafr_core.latent.networks.prior import PriorNet
from lafr_core.latent.networks.vae import StarterVaeNet

TINY = {"width": 8, "coarse": 16, "deep": 16, "code_width": 4, "entries": 6, "depth": 1, "grid": 16}


def codebook(top_k: int = 1) -> Codebook:
    book = Codebook(entries=3, width=2, top_k=top_k)
    book.codes.weight.data = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 8.0]])
    return book


def test_codebook_takes_the_nearest_entry_and_its_squared_distance() -> None:
    features = torch.tensor([[3.0, 1.0], [1.0, 7.0]]).t().reshape(1, 2, 1, 2)  # two cells: (3, 1) and (1, 7)
    match = codebook()(features)
    assert match.indices.tolist() == [[[1, 2]]]
    assert match.quantised[0, :, 0].t().tolist() == [[4.0, 0.0], [0.0, 8.0]]
    torch.testing.assert_close(match.distance, torch.tensor([[[[2.0, 2.0]]]]))


def test_soft_assignment_mixes_by_distance_and_stays_between_its_entries() -> None:
    features = torch.tensor([2.0, 0.0]).reshape(1, 2, 1, 1)  # half way between the first two entries
    soft = codebook(top_k=2)(features).quantised.flatten()
    torch.testing.assert_close(soft, torch.tensor([2.0, 0.0]))
    nearer = codebook(top_k=2)(torch.tensor([3.0, 0.0]).reshape(1, 2, 1, 1)).quantised.flatten()
    # squared distances 1 and 9, spread 1: weights softmax(-0.5, -4.5)
    expected = 4 * torch.softmax(torch.tensor([-0.5, -4.5]), 0)[0]
    torch.testing.assert_close(nearer, torch.stack([expected, torch.tensor(0.0)]))


def test_confidence_is_one_on_an_entry_and_falls_with_distance() -> None:
    book = codebook()
    book.spread.fill_(2.0)
    confidence = book.confidence(torch.tensor([0.0, 2.0, 6.0]))
    torch.testing.assert_close(confidence, torch.tensor([1.0, 0.5, 0.25]))


def test_the_confidence_map_is_what_is_not_expected_to_be_wrong() -> None:
    """No error is 1, the mean face's error 0, what is worse stays at 0; other sizes than the trained one work."""
    net = ConfidenceNet(width=8, deep=8, grid=16).eval()
    net.spread.fill_(0.5)
    torch.nn.init.zeros_(net.out.weight)
    z = torch.randn(2, 4, 16, 16)
    for error, wanted in ((0.1, 0.8), (0.5, 0.0), (2.0, 0.0)):
        torch.nn.init.constant_(net.out.bias, float(torch.tensor(error).log()))
        torch.testing.assert_close(net(z, z), torch.full((2, 1, 16, 16), error))
        torch.testing.assert_close(net.confidence(z, z), torch.full((2, 1, 16, 16), wanted), atol=1e-5, rtol=0)
    assert net(z[..., :12, :], z[..., :12, :]).shape == (2, 1, 12, 16)
    torch.nn.init.normal_(net.out.weight)
    assert not torch.allclose(net(z, z), net(z, z + 1)) and not torch.allclose(net(z, z), net(z + 1, z))


def test_codebook_refuses_more_neighbours_than_entries() -> None:
    with pytest.raises(InputError, match="expected top_k from 1 to 4 entries, got 5"):
        Codebook(entries=4, width=2, top_k=5)


def test_fidelity_zero_lets_only_codebook_entries_through() -> None:
    """Two inputs that fall on the same entries give the same output at fidelity 0, and differ above it."""
    torch.manual_seed(0)
    net = AdapterNet(**TINY).eval()
    torch.nn.init.normal_(net.mapping.fine_gate.weight, std=0.5)
    net.codebook.codes.weight.data[1:] = 1e6  # everything lands on entry 0
    a, b = torch.randn(2, 1, 4, 16, 16)
    zero, half = torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), 0.5)
    with torch.no_grad():
        torch.testing.assert_close(net(a, zero).latents, net(b, zero).latents, rtol=0, atol=0)
        assert not torch.allclose(net(a, half).latents, net(b, half).latents, atol=1e-3)


def test_adapter_gradient_passes_straight_through_the_look_up() -> None:
    torch.manual_seed(0)
    net = AdapterNet(**TINY)
    net(torch.randn(1, 4, 16, 16), torch.zeros(1, 1, 1, 1)).latents.square().mean().backward()
    assert net.extractor.code.weight.grad is not None and net.extractor.code.weight.grad.abs().sum() > 0


def test_an_untrained_prior_is_the_identity() -> None:
    torch.manual_seed(0)
    z = torch.randn(2, 4, 16, 24)
    net = PriorNet(widths=(8, 16, 16), depth=2, grid=16)
    torch.testing.assert_close(net(z), z, rtol=0, atol=0)
    torch.nn.init.normal_(net.out.weight)
    assert net(z).shape == z.shape and not torch.allclose(net(z), z)


def test_vae_shapes_follow_the_factor_for_non_square_pictures() -> None:
    net = StarterVaeNet()
    z = net.encoder(torch.rand(2, 3, 64, 40))
    assert z.shape == (2, 4, 8, 5)
    assert net.decoder(z).shape == (2, 3, 64, 40)


def test_residual_and_attention_start_as_the_identity() -> None:
    x = torch.randn(1, 8, 4, 6)
    torch.testing.assert_close(Residual(8, 8)(x), x)
    torch.testing.assert_close(Attention(8, grid=4, heads=2)(x), x)


@pytest.mark.parametrize("net", [AdapterNet(**TINY), PriorNet(widths=(8, 16, 16), depth=2, grid=16), StarterVaeNet()])
def test_config_rebuilds_the_network(net: torch.nn.Module) -> None:
    again = type(net)(**net.config)  # type: ignore[arg-type]
    again.load_state_dict(net.state_dict(), strict=True)


def test_a_sharpening_prior_raises_what_differs_from_its_surroundings() -> None:
    net = PriorNet(widths=(8, 8, 8), depth=1, groups=0, attention=False, sharpen=1.0)
    latents = torch.zeros(1, 4, 8, 8)
    latents[0, 1, 3, 3] = 16.0
    assert torch.equal(net(latents), latents)  # untrained
    with torch.no_grad():
        net.out.bias.copy_(torch.tensor([0.0, 0.5, 0.0, 0.0]).atanh())  # the gain of channel 1
        result = net(latents)
    assert torch.equal(result[:, [0, 2, 3]], latents[:, [0, 2, 3]])
    # a lone value keeps 4/16 of itself in its mean, its neighbours see 2/16, the diagonal ones 1/16
    assert result[0, 1, 3, 3:5].tolist() == pytest.approx([16 + 0.5 * 12, -0.5 * 2]) and float(
        result[0, 1, 4, 4]
    ) == pytest.approx(-0.5)
    flat = torch.full((1, 4, 8, 8), 3.0)
    with torch.no_grad():
        assert torch.allclose(net(flat), flat)  # nothing to raise, up to the border
