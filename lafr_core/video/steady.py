"""The crops of one track made to agree over time, where they show the same.

Crops of a track lie on one template, so head motion is out of them already. What is left, turning heads and speech, is followed
by a coarse optical flow; where two frames then still differ by more than their noise, they show different things (a blink, a
hand), and nothing is taken from the one for the other. So grain and the codec's noise average out, and motion stays sharp.
Light keeps its course, but does not tremble around it as codecs make it do.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..filters import displaced, gaussian
from ..geometry import CROP_SIZE, FFHQ_TEMPLATE

FLOW_SIDE = 64
"""Flow is sought on crops this small, the latents' own grid; it is found to a small part of a cell."""
FLOW_WINDOW = 4.0
"""Standard deviation in cells of the surroundings that move as a place does. Crops hold the head still already, so what is left
is broad (a turn); a flow of half that window follows the grain and makes edges tremble (2 to 3 times the error, measured)."""
FLOW_RIDGE = 0.5
"""What holds places still that are flatter than usual, as a share of the usual gradients."""
LIGHT_SIDE = 16
"""Differences broader than a cell of this grid are light and tint, which change from frame to frame and are kept so."""
MOST_LIGHT = 0.06
"""Light changes less than this within the few frames looked at."""
TREMBLE = 0.015
"""Changes of light up to about this are steadied; a lamp switched on is more."""
LATTICE = 0.02
"""A decoder's lattice is weaker than this; lashes and the light in an eye are not."""
LATTICE_SPREAD = 4.0
"""Cells around one over which its lattice is the same."""
AGREE = 2.5
"""Differences up to this many times the noise pass for noise ..."""
AGREE_MOVING = 1.0
"""... and in eyes and mouth, where a little more is a lid half closed."""
EYE, MOUTH = (6.0, 5.0), (9.0, 6.0)
"""Half width and half height of them, in cells of the flow's grid."""
ROUGH_TO_SIGMA = 1.7
"""Standard deviation of white noise over the median of the absolute values that a blur of one cell leaves of it."""
LEAST_NOISE = 0.006
"""A clean clip's rounding: below it frames are not told apart."""


def reach_of(steadiness: float) -> int:
    """Frames to each side that are looked at for one frame."""
    return round(4 * steadiness)


def working_side(side: int, enlarged: float) -> int:
    """The side at which crops of ``side`` that hold pixels ``enlarged`` times are fused: nothing finer is in them."""
    shrink = 4 if enlarged >= 4 else 2 if enlarged >= 2 else 1
    return max(FLOW_SIDE, side // shrink)


def fuse(crops: Tensor, middle: int, steadiness: float) -> Tensor:
    """One frame's crop, cleaned with its neighbours'.

    crops: (N, 3, S, S) in [0, 1], consecutive frames of one track at the template, S at least 64. Returns (3, S, S): the crop
    ``middle`` where its neighbours show something else, their mean where they agree; in the light that frames on both sides
    of it have on average. At steadiness 0, and with one crop only, it is that crop itself.
    """
    if steadiness == 0 or len(crops) == 1:
        return crops[middle]
    side = crops.shape[-1]
    target = crops[middle][None]
    others = torch.cat([crops[:middle], crops[middle + 1 :]])
    near = torch.tensor([k - middle for k in range(len(crops)) if k != middle])
    small, small_others = _small(target), _small(others)
    flow = flow_between(small, small_others)
    moved = warp(others, flow)
    light = _light_cells(target - moved)
    moved = moved + _spread(light, side)
    weight = _agreement(small, warp(small_others, flow)) * time_weights(near, steadiness)[:, None, None, None].to(crops)
    weight = F.interpolate(weight, size=(side, side), mode="bilinear", align_corners=False)
    clean = (target[0] + (weight * moved).sum(0)) / (1 + weight.sum(0))
    return (clean - _spread(_tremble(light, near, steadiness), side)[0]).clamp(0, 1)


def calmed(changes: Tensor, clean: Tensor, middle: int, steadiness: float) -> Tensor:
    """What restoring changes in one frame (3, S, S), averaged with what it changes in the neighbours where they show the same.

    changes: (N, 3, s, s), restored less clean, consecutive frames of one track; clean: (N, 3, S, S), the frames cleaned by
    :func:`fuse`, on which motion is seen best. Returns (3, s, s). The frames' own content is not averaged once more, so motion,
    blinks and speech stay as sharp in time as they are in ``clean``. At steadiness 0 the frame's own.
    """
    if steadiness == 0 or len(changes) == 1:
        return changes[middle]
    others = [k for k in range(len(changes)) if k != middle]
    near = torch.tensor([k - middle for k in others], dtype=torch.float32)
    small = _small(clean)
    flow = flow_between(small[middle][None], small[others])
    weight = _agreement(small[middle][None], warp(small[others], flow))
    weight = weight * time_weights(near, steadiness)[:, None, None, None].to(changes)
    weight = F.interpolate(weight, size=changes.shape[-2:], mode="bilinear", align_corners=False)
    return (changes[middle] + (weight * warp(changes[others], flow)).sum(0)) / (1 + weight.sum(0))


def without_lattice(changes: Tensor, cell: int) -> Tensor:
    """Changes (N, C, S, S) without the pattern that repeats every ``cell`` pixels: a decoder's own lattice, which hides in the
    texture of one frame and stays behind, as dots, when the texture of several is averaged. S is a multiple of ``cell``.

    The pattern is what the pixels at one place of all cells around have in common; what is stronger than it can be counts less.
    """
    fine = (changes - gaussian(changes, cell / 2)).clamp(-LATTICE, LATTICE)
    usual = gaussian(F.pixel_unshuffle(fine, cell), LATTICE_SPREAD)
    places = usual.unflatten(1, (changes.shape[1], cell * cell))
    return changes - F.pixel_shuffle((places - places.mean(2, keepdim=True)).flatten(1, 2), cell)


def resized(images: Tensor, side: int) -> Tensor:
    """Images (N, C, S, S) at another side: averaged when smaller, bicubic when larger."""
    if side == images.shape[-1]:
        return images
    smaller = side < images.shape[-1]
    mode = "bilinear" if smaller else "bicubic"
    return F.interpolate(images, size=(side, side), mode=mode, antialias=smaller, align_corners=False)


def fuse_at(crops: Tensor, middle: int, steadiness: float, side: int) -> Tensor:
    """:func:`fuse` done on crops (N, 3, S, S) shrunk to ``side``; what it changes is enlarged and added."""
    if side == crops.shape[-1] or steadiness == 0 or len(crops) == 1:
        return fuse(crops, middle, steadiness)
    small = resized(crops, side)
    change = resized((fuse(small, middle, steadiness) - small[middle])[None], crops.shape[-1])[0]
    return (crops[middle] + change).clamp(0, 1)


def time_weights(distance: Tensor, steadiness: float) -> Tensor:
    """How much frames (N,) that many frames away count, in [0, 1]."""
    return torch.exp(-0.5 * (distance / (0.6 * reach_of(steadiness) + 0.5)) ** 2)


def _small(crops: Tensor) -> Tensor:
    """(N, 3, S, S) -> (N, 3, FLOW_SIDE, FLOW_SIDE), a little blurred, so that noise does not pass for motion."""
    return gaussian(F.interpolate(crops, size=(FLOW_SIDE, FLOW_SIDE), mode="area"), 0.7)


def _light(difference: Tensor, side: int) -> Tensor:
    """The broad part of a difference (N, 3, s, s), as large as ``side``."""
    return _spread(_light_cells(difference), side)


def _light_cells(difference: Tensor) -> Tensor:
    """The broad part of a difference (N, 3, s, s): (N, 3, LIGHT_SIDE, LIGHT_SIDE)."""
    # Clamped, so that a closed eye does not pass for a shadow; a flash is then no light, and its frame stands alone.
    cells = F.interpolate(difference.clamp(-MOST_LIGHT, MOST_LIGHT), size=(LIGHT_SIDE, LIGHT_SIDE), mode="area")
    return gaussian(cells, 1.0)


def _spread(cells: Tensor, side: int) -> Tensor:
    return F.interpolate(cells, size=(side, side), mode="bicubic", align_corners=False)


def _tremble(light: Tensor, near: Tensor, steadiness: float) -> Tensor:
    """How far the light of a frame is off the mean of its neighbours', where it changes little: (1, 3, s, s).

    light: (N, 3, s, s), the frame's less each neighbour's; near: (N,), how many frames away they are. Neighbours count in
    pairs, one on each side, so that light that grows or fades evenly is left as it is.
    """
    places = {distance: k for k, distance in enumerate(near.tolist())}
    pairs = [(k, places[-distance]) for distance, k in places.items() if distance > 0 and -distance in places]
    total, weights = torch.zeros_like(light[:1]), torch.ones_like(light[:1, :1])
    for after, before in pairs:
        both = light[[after, before]]
        weight = torch.exp(-((both.abs().amax((0, 1)) / TREMBLE) ** 4)) * time_weights(near[after], steadiness)
        total, weights = total + weight * both.sum(0), weights + 2 * weight
    return total / weights


def _agreement(target: Tensor, moved: Tensor) -> Tensor:
    """Small crops (1, 3, s, s) and (N, 3, s, s) -> (N, 1, s, s) in [0, 1]: 1 where they differ by their noise only."""
    difference = moved - target
    difference = difference - _light(difference, target.shape[-1])
    error = gaussian(difference.square().mean(1, keepdim=True), 1.5).sqrt()
    quarter = target.shape[-1] // 4
    face = (..., slice(quarter, -quarter), slice(quarter, -quarter))
    # What is usual over the face is noise, unless it is far above what changes from cell to cell: then the whole face moved.
    usual = error[face].flatten(1).median(dim=1).values
    rough = (difference - gaussian(difference, 1.0))[face].abs().flatten(1).median(dim=1).values * ROUGH_TO_SIGMA
    noise = torch.minimum(usual, 2 * rough).clamp_min(LEAST_NOISE)[:, None, None, None]
    agree = AGREE + (AGREE_MOVING - AGREE) * _moving(target.shape[-1]).to(target)
    return torch.exp(-((error / (agree * noise)) ** 4))


def _moving(side: int) -> Tensor:
    """(side, side) in [0, 1]: 1 in the eyes and the mouth of a crop at the template."""
    y, x = torch.arange(side)[:, None] + 0.5, torch.arange(side) + 0.5
    cell = side / FLOW_SIDE
    left, right, _, *corners = ((px * side / CROP_SIZE, py * side / CROP_SIZE) for px, py in FFHQ_TEMPLATE)
    mouth = tuple(sum(values) / 2 for values in zip(*corners, strict=True))
    parts = ((left, EYE), (right, EYE), (mouth, MOUTH))
    masks = [torch.exp(-(((x - px) / (w * cell)) ** 4) - ((y - py) / (h * cell)) ** 4) for (px, py), (w, h) in parts]
    return torch.stack(masks).amax(0)


def flow_between(target: Tensor, others: Tensor) -> Tensor:
    """Where each pixel of ``target`` (1, 3, s, s) is found in each of ``others`` (N, 3, s, s): (N, 2, s, s), (x, y) in pixels.

    Lucas and Kanade 1981, coarse to fine, in broad windows and with a ridge that keeps flat and noisy places still.
    """
    goal, seen = target.mean(1, keepdim=True), others.mean(1, keepdim=True)
    flow = others.new_zeros((len(others), 2, 1, 1))
    for shrink, steps in ((2, 3), (1, 4)):
        size = tuple(side // shrink for side in target.shape[-2:])
        a, b = (F.interpolate(x, size=size, mode="area") for x in (goal, seen))
        a, b = a - gaussian(a, 3.0 / shrink), b - gaussian(b, 3.0 / shrink)  # light changes are no motion
        flow = F.interpolate(flow, size=size, mode="bilinear", align_corners=False) * (2.0 if flow.shape[-1] > 1 else 1.0)
        for _ in range(steps):
            moved = warp(b, flow)
            flow = gaussian(flow + _step(a, moved, FLOW_WINDOW / shrink), FLOW_WINDOW / shrink)
    return flow


def _step(a: Tensor, moved: Tensor, window: float) -> Tensor:
    """The shift that takes ``moved`` (N, 1, s, s) nearer to ``a`` (1, 1, s, s), at most a pixel: (N, 2, s, s)."""
    middle = (moved + a) / 2
    padded = F.pad(middle, (1, 1, 1, 1), mode="replicate")
    gx = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    gy = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    gt = a - moved
    sums = gaussian(torch.cat([gx * gx, gx * gy, gy * gy, gx * gt, gy * gt], 1), window)
    xx, xy, yy, xt, yt = sums.split(1, dim=1)
    ridge = 1e-5 + FLOW_RIDGE * (xx + yy).mean(dim=(-2, -1), keepdim=True)
    xx, yy = xx + ridge, yy + ridge
    determinant = xx * yy - xy * xy
    step = torch.cat([(yy * xt - xy * yt) / determinant, (xx * yt - xy * xt) / determinant], 1)
    return step.clamp(-1, 1)


def warp(images: Tensor, flow: Tensor) -> Tensor:
    """Images (N, C, S, S) fetched along ``flow`` (N, 2, s, s), which counts in its own pixels; as large as the images."""
    height, width = images.shape[-2:]
    if flow.shape[-2:] != (height, width):
        flow = F.interpolate(flow, size=(height, width), mode="bilinear", align_corners=False) * (width / flow.shape[-1])
    return displaced(images, flow)
