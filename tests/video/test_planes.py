"""Frames to RGB and back: right colours, and not one bit changed where nothing was restored."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lafr_core.errors import InputError
from lafr_core.video import planes

av = pytest.importorskip("av", reason="clips need PyAV")

COLOUR = (200, 80, 30)
FORMATS = ("yuv420p", "yuv422p", "yuv444p", "yuv411p", "yuva420p", "yuv420p10le", "yuv422p10le", "nv12", "gbrp", "bgr0", "rgba")


def flat(name: str) -> av.VideoFrame:
    array = np.zeros((16, 24, 3), np.uint8)
    array[:] = COLOUR
    frame = av.VideoFrame.from_ndarray(array, format="rgb24").reformat(format=name)
    frame.pts = 7
    return frame


def stored(frame: av.VideoFrame) -> list[bytes]:
    """The stored values of every plane, without what pads its rows."""
    if frame.format.is_rgb:
        return [frame.to_ndarray().tobytes()]
    kind = np.dtype("<u2") if planes.depth(frame.format) > 8 else np.dtype("u1")
    rows = [np.frombuffer(p, kind).reshape(p.height, p.line_size // kind.itemsize)[:, : p.width] for p in frame.planes]
    return [plane.tobytes() for plane in rows]


@pytest.mark.parametrize("name", FORMATS)
def test_colours_are_those_of_the_frame(name: str) -> None:
    pixels = planes.to_rgb(planes.plain(flat(name)))
    assert pixels.shape == (3, 16, 24) and pixels.dtype == torch.float32
    assert torch.allclose(pixels[:, 3, 5] * 255, torch.tensor(COLOUR, dtype=torch.float32), atol=1.2)


@pytest.mark.parametrize("name", FORMATS)
def test_a_change_arrives_and_the_rest_keeps_its_bits(name: str) -> None:
    frame = planes.plain(flat(name))
    change = torch.zeros(3, 16, 24)
    change[:, 4:12, 8:16] = torch.tensor([-0.1, 0.1, 0.2])[:, None, None]
    new = planes.changed(frame, change)
    assert new.format.name == frame.format.name and new.pts == 7
    difference = planes.to_rgb(new) - planes.to_rgb(frame)
    assert torch.allclose(difference[:, 8, 12], torch.tensor([-0.1, 0.1, 0.2]), atol=0.006)
    assert bool((difference[:, :2] == 0).all()) and bool((difference[..., 20:] == 0).all())
    assert stored(planes.changed(frame, torch.zeros(3, 16, 24))) == stored(frame)


def test_hd_and_labelled_frames_use_their_own_matrix() -> None:
    """One stored value, three meanings: the label decides, then the height."""
    frame = av.VideoFrame.from_ndarray(np.full((16 * 3 // 2, 16), 100, np.uint8), format="yuv420p")
    frame.planes[2].update(bytes([160] * frame.planes[2].buffer_size))
    small = planes.to_rgb(frame)[:, 0, 0]
    frame.colorspace = 1
    labelled = planes.to_rgb(frame)[:, 0, 0]
    assert abs(float(small[0]) - ((100 - 16) / 219 + 1.402 * 32 / 224)) < 1e-5
    assert abs(float(labelled[0]) - ((100 - 16) / 219 + 1.5748 * 32 / 224)) < 1e-5
    frame.color_range = 2
    assert abs(float(planes.to_rgb(frame)[0, 0, 0]) - (100 / 255 + 1.5748 * 32 / 255)) < 1e-5


def test_a_change_of_another_size_is_refused() -> None:
    with pytest.raises(InputError, match=r"expected a change of \(3, 16, 24\), got \(3, 8, 8\)"):
        planes.changed(flat("yuv420p"), torch.zeros(3, 8, 8))
