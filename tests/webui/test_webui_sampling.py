from __future__ import annotations

import pytest
import torch

from lafr_core.errors import Cancelled
from lafr_core.latent import prediction
from lafr_core.latent.spec import FAMILIES
from lafr_webui.sampling import FewSteps, OneStep

ALPHAS = prediction.alphas_cumprod()


class Oracle:
    """Knows the clean latent; records what it was asked."""

    spec = FAMILIES["sd"]

    def __init__(self, clean):
        self.clean, self.asked = clean, []

    def alpha(self, timestep):
        return float(ALPHAS[timestep])

    def __call__(self, x_t, timestep):
        self.asked.append((timestep, x_t.clone()))
        return self.clean.expand_as(x_t).clone()


class Shrink(Oracle):
    """The exact denoiser of latents drawn from N(0, 1): x0 = sqrt(alpha) x_t."""

    def __call__(self, x_t, timestep):
        self.asked.append((timestep, x_t.clone()))
        return self.alpha(timestep) ** 0.5 * x_t


@pytest.fixture
def latents():
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def crops():
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))


def test_one_step_feeds_the_latent_itself(latents, crops):
    oracle = Oracle(latents * 2)
    assert torch.equal(OneStep(oracle, 399)(latents, crops), latents * 2)
    ((timestep, asked),) = oracle.asked
    assert timestep == 399 and torch.equal(asked, latents)


@pytest.mark.parametrize(
    ("steps", "denoise", "expected"), [(4, 0.4, [400, 300, 200, 100]), (1, 1.0, [999]), (50, 0.005, [5, 4, 3, 2, 1])]
)
def test_timesteps_fall_without_repeats(steps, denoise, expected):
    assert FewSteps(Oracle(None), steps, denoise, 0).timesteps() == expected


def test_few_steps_end_in_the_oracles_latent(latents, crops):
    oracle = Oracle(latents * 0.5)
    assert torch.equal(FewSteps(oracle, 4, 0.4, 7)(latents, crops), latents * 0.5)
    assert [timestep for timestep, _ in oracle.asked] == [400, 300, 200, 100]


def test_every_step_sees_the_noise_level_of_its_timestep(latents, crops):
    """With the oracle, x_t must be sqrt(a) x0 + sqrt(1-a) noise with the same noise throughout (DDIM, sigma 0)."""
    oracle = Oracle(latents)
    FewSteps(oracle, 4, 0.6, 3)(latents, crops)
    noises = [(x - oracle.alpha(t) ** 0.5 * latents) / (1 - oracle.alpha(t)) ** 0.5 for t, x in oracle.asked]
    for noise in noises:
        assert torch.allclose(noise, noises[0], atol=1e-4)
    assert torch.equal(noises[0][0].round(decimals=3), noises[0][1].round(decimals=3))  # the same for every face
    assert 0.8 < float(noises[0].std()) < 1.2


def test_a_face_does_not_depend_on_its_batch(latents, crops):
    sample = FewSteps(Shrink(None), 3, 0.5, 11)
    assert torch.allclose(sample(latents, crops)[1:], sample(latents[1:], crops[1:]), atol=1e-6)


@pytest.mark.parametrize("changed", [{"steps": 2}, {"denoise": 0.7}, {"seed": 12}])
def test_each_knob_changes_the_result(latents, crops, changed):
    base = {"steps": 3, "denoise": 0.5, "seed": 11}
    assert not torch.allclose(
        FewSteps(Shrink(None), **base)(latents, crops), FewSteps(Shrink(None), **{**base, **changed})(latents, crops), atol=1e-3
    )


def test_timestep_changes_the_one_step_result(latents, crops):
    assert not torch.allclose(OneStep(Shrink(None), 399)(latents, crops), OneStep(Shrink(None), 200)(latents, crops), atol=1e-3)


def test_stopping_is_asked_before_each_step(latents, crops):
    calls = []

    def poll():
        calls.append(1)
        if len(calls) == 3:
            raise Cancelled("stop")

    oracle = Oracle(latents)
    with pytest.raises(Cancelled):
        FewSteps(oracle, 5, 0.5, 0, poll=poll)(latents, crops)
    assert len(oracle.asked) == 2
