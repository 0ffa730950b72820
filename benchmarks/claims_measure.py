"""How benchmarks.claims_pilot measures: identity by dlib, bootstrap intervals, CPU seconds, bytes of a training step."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from train.judges.metrics import dlib_network

Array = NDArray[np.float64]


class DlibIdentity:
    """Identity by dlib's face network, which nothing here is trained against. 1 = the same descriptor.

    dlib's descriptors of any two faces lie close together, so the mean descriptor of the clean validation faces is taken off
    before the cosine: 0 is then "as alike as two strangers".
    """

    def __init__(self, originals: Tensor) -> None:
        self.network = dlib_network()
        raw = self.describe(originals)
        self.mean = raw.mean(0)
        self.originals = raw - self.mean

    def describe(self, pictures: Tensor) -> Array:
        """(N, 3, 256, 256) in [0, 1] -> (N, 128). The middle of the FFHQ crop is about dlib's own chip."""
        rows = []
        for picture in pictures:
            pixels = (picture.permute(1, 2, 0).numpy() * 255 + 0.5).clip(0, 255).astype(np.uint8)
            chip = Image.fromarray(pixels[52:224, 42:214]).resize((150, 150), Image.Resampling.BICUBIC)
            rows.append(np.asarray(self.network.compute_face_descriptor(np.asarray(chip))))
        return np.stack(rows)

    def __call__(self, pictures: Tensor) -> Array:
        a, b = self.describe(pictures) - self.mean, self.originals
        return np.asarray((a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)))


class Stopwatch:
    """CPU seconds of this process since it was made, without what was spent in :meth:`paused`."""

    def __init__(self) -> None:
        self.started, self.lost = time.process_time(), 0.0

    def seconds(self) -> float:
        return time.process_time() - self.started - self.lost

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        begun = time.process_time()
        yield
        self.lost += time.process_time() - begun


def peak_bytes(step: Callable[[], object]) -> int:
    """The most bytes that ``step`` held at once beyond what was there before it, by torch's own record of allocations."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    held = np.cumsum([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())])
    return int(held.max(initial=0))


def interval(values: Sequence[float], seed: int = 0, draws: int = 4000) -> tuple[float, float, float]:
    """Mean with its 95 % percentile bootstrap interval."""
    data = np.asarray(values)
    means = data[np.random.default_rng(seed).integers(0, len(data), (draws, len(data)))].mean(1)
    return float(data.mean()), float(np.percentile(means, 2.5)), float(np.percentile(means, 97.5))


def relative(a: Sequence[float], b: Sequence[float], seed: int = 0, draws: int = 4000) -> tuple[float, float, float]:
    """Gain of mean(a) over mean(b) in per cent with its 95 % interval, the same faces drawn for both."""
    x, y = np.asarray(a), np.asarray(b)
    rows = np.random.default_rng(seed).integers(0, len(x), (draws, len(x)))
    gains = 100 * (x[rows].mean(1) / y[rows].mean(1) - 1)
    return float(100 * (x.mean() / y.mean() - 1)), float(np.percentile(gains, 2.5)), float(np.percentile(gains, 97.5))


def time_to(curve: Sequence[tuple[float, float]], error: float) -> float | None:
    """CPU seconds until the curve of (seconds, error) first reaches ``error``, or None."""
    return next((seconds for seconds, value in curve if value <= error), None)
