"""Face pictures -> (degraded, clean) pairs, addressed by position in an endless stream.

Position p of a run stands for one picture of one epoch, and everything drawn for it comes from a generator made of
(seed, epoch, index of the picture). So a sample is the same whatever the number of workers, processes or interruptions, and a
run resumes by asking for the next position.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lafr_core.errors import ImageFileError, InputError
from lafr_core.geometry import CROP_SIZE, scale_of
from lafr_core.images.degrade import Drawn
from lafr_core.images.formats import open_image, regular_file
from lafr_core.images.photos import MAX_PIXELS, from_pil, to_pil
from lafr_core.types import Matrix
from train.config import Data
from train.data import sources
from train.data.degradation import spoil
from train.data.drawn import draw_face
from train.data.photos import Portrait, aligned_crop, read_split
from train.data.sources import Inside

log = logging.getLogger("train.data")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
DRAWN = "drawn:"
SEPARATOR = ";"
DECODED = 2000
"""Up to so many chosen pictures are decoded at the start, so that bad ones are known then."""
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError, ImageFileError)
"""What opening and decoding a picture raises where it is none."""
DRAWN_PARAMETERS = ("sigma_x", "sigma_y", "angle", "ratio", "noise", "quality", "gray")
"""What of a :class:`~lafr_core.images.degrade.Drawn` a batch carries along in ``drawn`` (B, 7)."""


LONGEST = 200
"""Bytes of a name that is made from another's: most disks take 255, and a number and a suffix follow."""


def shortened(name: str) -> str:
    """The beginning of ``name`` in so many bytes."""
    return os.fsdecode(os.fsencode(name)[:LONGEST])


class Labelled(Protocol):
    """A picture that may have a row in a face list."""

    @property
    def labels(self) -> Mapping[str, str]: ...


Source = TypeVar("Source", bound=Labelled)


@dataclass(frozen=True)
class Picture:
    """One source picture: a file (with the matrix of its crop, where landmarks are known), a place inside a tar or parquet
    file, or a number to draw one from.
    """

    name: str
    path: Path | None = None
    matrix: Matrix | None = None
    number: int = 0
    inside: Inside | None = None
    labels: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Its row of faces.csv or manifest.csv."""

    @contextmanager
    def open(self) -> Iterator[Image.Image]:
        """The picture's file, decoded when it is used. Raises one of :data:`UNREADABLE` for what is none of the formats that
        are opened: a page description in a photo's name is a program, and a pipe would be waited for.
        """
        assert self.path is not None
        if problem := regular_file(self.path):
            raise ImageFileError(problem)
        with io.BytesIO(sources.read(self.path, self.inside)) if self.inside is not None else self.path.open("rb") as stream:
            image = open_image(stream, MAX_PIXELS)
            if image.width * image.height > MAX_PIXELS:
                raise ImageFileError(f"too large ({image.width}x{image.height} pixels)")
            yield image


def places_of(source: str) -> list[str]:
    """The sources that a config's text names: several are separated by semicolons."""
    return [place.strip() for place in source.split(SEPARATOR) if place.strip()] or [""]


def find_pictures(source: str, split: str = "train") -> list[Picture]:
    """All pictures of every source in ``source``; of several, names begin with their folder's. Raises InputError for one
    without any.
    """
    places = places_of(source)
    if len(places) == 1:
        return _pictures_in(places[0], split)
    found = [(Path(place).name, picture) for place in places for picture in _pictures_in(place, split)]
    return [replace(picture, name=f"{folder}/{picture.name}") for folder, picture in found]


def _pictures_in(source: str, split: str) -> list[Picture]:
    """The pictures of one source, in an order that does not depend on the file system.

    source: ``drawn:N``; a folder with ``manifest.csv`` (of ``prepare``) or ``faces.csv`` (whole photos with landmarks); tar
    shards or parquet files, one or a folder of them; or any folder, searched to any depth. Raises InputError when there is
    nothing.
    """
    if source.startswith(DRAWN):
        count = int(source.removeprefix(DRAWN))
        return [Picture(f"drawn {i}", number=i) for i in range(count)]
    root = Path(source)
    if not source or not root.exists():
        raise InputError(f"data: expected a folder of face pictures, found none at {source!r}; set data.source")
    if (root / "manifest.csv").is_file():
        with (root / "manifest.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            pictures = [Picture(row["file"], root / row["file"], labels=row) for row in csv.DictReader(file)]
    elif (root / "faces.csv").is_file():
        photos = read_split(root, split)
        pictures = [Picture(p.path.relative_to(root).as_posix(), p.path, p.matrix, labels=p.labels) for p in photos]
    elif shards := sources.containers(root):
        pictures = [Picture(name, path, inside=place) for path in shards for name, place in sources.inside(path, SUFFIXES)]
    else:
        files = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        pictures = [Picture(p.relative_to(root).as_posix(), p) for p in files]
    if not pictures:
        raise InputError(f"{root}: no pictures in it or below ({', '.join(SUFFIXES)}); point data.source at the face folder")
    return pictures


def readable(pictures: Sequence[Picture]) -> tuple[list[Picture], list[str]]:
    """The pictures that decode, and the names of those that do not; each of the latter is logged. Raises InputError if none
    does.

    Of more than :data:`DECODED` pictures only the headers are read: seventy thousand are not decoded before the first step.
    """
    whole = len(pictures) <= DECODED
    good, bad = [], []
    for picture in pictures:
        try:
            if picture.path is not None:
                with picture.open() as image:
                    if whole:
                        image.load()
        except UNREADABLE as error:
            bad.append(picture.name)
            log.warning("skipped %s: cannot be decoded (%s)", picture.name, error)
        else:
            good.append(picture)
    if bad:
        log.warning("%d of %d pictures skipped because they cannot be decoded", len(bad), len(pictures))
    if not good:
        raise InputError(
            f"data: none of the {len(pictures)} pictures can be decoded; check the files, first {pictures[0].name}"
        )
    return good, bad


def labelled_photos(data: Data) -> list[Portrait]:
    """The chosen share of the training photos in ``data.source``'s faces.csv, balanced, for what is taught whole photos."""
    photos = [photo for place in places_of(data.source) for photo in read_split(Path(place), "train")]
    return balanced(choose(photos, data.subset, data.subset_seed, data.subset_method), data.balance)


def balanced(pictures: Sequence[Source], column: str) -> list[Source]:
    """Pictures of the smaller groups repeated, in turn, until every value of ``column`` has as many as the largest has.

    ``age`` counts by ten years; pictures without the column, or with NA in it, are one group. Empty = as they are. Raises
    InputError where no picture has the column.
    """
    if not column:
        return list(pictures)
    groups: dict[str, list[Source]] = {}
    for picture in pictures:
        groups.setdefault(_group_of(picture.labels, column), []).append(picture)
    if set(groups) == {""}:
        known = sorted({name for picture in pictures for name in picture.labels}) or ["none at all"]
        raise InputError(f"data.balance: expected a column of the face list, got {column!r}; there is {', '.join(known)}")
    largest = max(map(len, groups.values()))
    return [group[number % len(group)] for group in groups.values() for number in range(largest)]


def _group_of(labels: Mapping[str, str], column: str) -> str:
    value = labels.get(column) or ""
    if column == "age" and value[:1].isdigit():
        return str(int(float(value)) // 10 * 10)
    return "" if value == "NA" else value


def choose(
    pictures: Sequence[Source],
    share: float,
    seed: int,
    method: str,
    features: Callable[[Sequence[Source]], Tensor] | None = None,
) -> list[Source]:
    """``share`` of the pictures (at least one), chosen reproducibly, in their original order.

    random: without replacement. k-centre: start at a random picture, then always the one farthest from all chosen (Gonzalez
    1985, "Clustering to minimize the maximum intercluster distance"), over ``features(pictures)`` (N, D).
    """
    count = max(1, round(share * len(pictures)))
    if count >= len(pictures):
        return list(pictures)
    generator = np.random.default_rng(seed)
    if method == "random":
        rows = generator.choice(len(pictures), count, replace=False)
    else:
        if features is None:
            raise InputError("subset: k-centre needs features of the pictures; use the random method")
        rows = k_centre(features(pictures), count, int(generator.integers(len(pictures))))
    return [pictures[row] for row in sorted(int(r) for r in rows)]


def k_centre(features: Tensor, count: int, first: int) -> NDArray[np.int64]:
    """Greedy k-centre: rows (count,) of ``features`` (N, D), beginning with ``first``; ties go to the lower row."""
    flat = features.flatten(1).double()
    chosen = [first]
    nearest = (flat - flat[first]).square().sum(1)
    while len(chosen) < count:
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, (flat - flat[chosen[-1]]).square().sum(1))
    return np.asarray(chosen, dtype=np.int64)


def large_enough(pictures: Sequence[Picture], data: Data) -> list[Picture]:
    """The pictures with at least ``data.least`` pixels in their file for each of the crop. Raises InputError if none has."""
    if not data.least:
        return list(pictures)
    kept = [picture for picture in pictures if detail(picture, data.size) >= data.least]
    log.info("%d of %d pictures have %g pixels in their file for each of the crop", len(kept), len(pictures), data.least)
    if not kept:
        raise InputError(
            f"data.least: none of {len(pictures)} pictures has {data.least} pixels for each of the crop; lower it, or give "
            "larger ones"
        )
    return kept


def detail(picture: Picture, size: int) -> float:
    """Pixels in the picture's file along one pixel of its crop of ``size``; a file that cannot be read counts as large enough,
    and is refused by name later.
    """
    if picture.path is None:
        return math.inf
    if picture.matrix is not None:
        return CROP_SIZE / size / scale_of(picture.matrix)
    try:
        with picture.open() as image:
            return min(image.size) / size
    except UNREADABLE:
        return math.inf


def manifest_hash(pictures: Sequence[Picture]) -> str:
    """sha256 over names and sizes of the chosen files: changes when the data does."""
    digest = hashlib.sha256()
    for picture in pictures:
        size = picture.path.stat().st_size if picture.path is not None else picture.number
        size = picture.inside.size if picture.inside is not None else size
        digest.update(f"{picture.name}\0{size}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def load_picture(picture: Picture, size: int) -> NDArray[np.float32]:
    """(size, size, 3) float32 RGB in [0, 1]. Files of other shapes are cut to their middle square and resampled."""
    if picture.path is None:
        return draw_face(picture.number, size)
    try:
        with picture.open() as opened:
            image = to_pil(from_pil(opened)).convert("RGB")
    except UNREADABLE as error:
        raise InputError(f"{picture.name}: cannot be decoded ({error}); delete it or fetch it again, then resume") from error
    return _squared(image, picture, size)


def _squared(image: Image.Image, picture: Picture, size: int) -> NDArray[np.float32]:
    """The decoded picture as a crop: by its landmarks, or its middle square."""
    if picture.matrix is None:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
        if side != size:
            image = image.resize((size, size), Image.Resampling.LANCZOS)
        return np.asarray(image, dtype=np.float32) / np.float32(255)
    pixels = np.asarray(image)
    crop = aligned_crop(pixels, picture.matrix).permute(1, 2, 0).numpy()
    if crop.shape[0] == size:
        return crop
    small = Image.fromarray((crop * 255 + 0.5).astype(np.uint8)).resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(small, dtype=np.float32) / np.float32(255)


class Samples(Protocol):
    """What a run trains on: an endless stream of samples, each the same whenever its position is asked for."""

    pictures: list[Picture]
    """What they are made from: listed beside the checkpoints, and a resumed run must have the same."""
    data: Data

    def __getitem__(self, position: int) -> dict[str, Any]:
        """Tensors by name. ``drawn`` (7,), where there is one, is logged as :data:`DRAWN_PARAMETERS`."""
        ...


def locate(position: int, count: int, seed: int) -> tuple[int, int]:
    """Stream position -> (epoch, row below ``count``): every epoch is a permutation of its own."""
    epoch, place = divmod(position, count)
    return epoch, int(_order(seed, epoch, count)[place])


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, 1, epoch]).permutation(count)


class Faces(Dataset[dict[str, Any]]):
    """Stream position -> ``hq`` and ``lq`` (3, S, S) in [0, 1], ``fidelity`` in [0, 1], ``index`` and ``drawn``."""

    def __init__(self, pictures: Sequence[Picture], data: Data, seed: int) -> None:
        self.pictures = list(pictures)
        self.data = data
        self.seed = seed

    def __len__(self) -> int:
        return len(self.pictures)

    def locate(self, position: int) -> tuple[int, int]:
        """Stream position -> (epoch, picture)."""
        return locate(position, len(self.pictures), self.seed)

    def __getitem__(self, position: int) -> dict[str, Any]:
        epoch, index = self.locate(position)
        generator = np.random.default_rng([self.seed, 2, epoch, index])
        sharp = load_picture(self.pictures[index], self.data.size)
        if generator.random() < self.data.flip:
            sharp = np.ascontiguousarray(sharp[:, ::-1])
        fidelity = float(generator.random())
        spoilt, drawn = spoil(sharp, generator, self.data.severity)
        if self.data.fidelity_share > 0 and generator.random() < self.data.fidelity_share:
            fidelity = self.data.fidelity
        return {
            "hq": to_tensor(sharp),
            "lq": to_tensor(spoilt),
            "fidelity": torch.tensor(fidelity, dtype=torch.float32),
            "index": torch.tensor(index),
            "drawn": parameters(drawn),
        }


def draw_fidelity(generator: np.random.Generator, data: Data) -> float:
    """``fidelity_share`` of the samples at ``data.fidelity``, the rest anywhere: every setting of the knob has to work."""
    anywhere, usual = generator.random(2)
    return data.fidelity if usual < data.fidelity_share else float(anywhere)


def to_tensor(image: NDArray[np.float32]) -> Tensor:
    """(H, W, 3) -> (3, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def parameters(drawn: Drawn) -> Tensor:
    """The drawn degradation as numbers, in the order of :data:`DRAWN_PARAMETERS`."""
    return torch.tensor([float(getattr(drawn, name)) for name in DRAWN_PARAMETERS])


def positions(step: int, *, batch: int, accumulate: int, rank: int, world: int) -> Iterator[list[int]]:
    """Stream positions of this process's micro-batches from optimiser ``step`` on, for ever.

    Micro-batch m of rank r in step s covers ``((s * accumulate + m) * world + r) * batch`` and the ``batch - 1`` after it: two
    processes see per step what one process sees with twice the accumulation.
    """
    micro = step * accumulate
    while True:
        start = (micro * world + rank) * batch
        yield list(range(start, start + batch))
        micro += 1


class _Batches:
    """:func:`positions` as the batch sampler a DataLoader wants."""

    def __init__(self, step: int, batch: int, accumulate: int, rank: int, world: int) -> None:
        self.arguments = {"batch": batch, "accumulate": accumulate, "rank": rank, "world": world}
        self.step = step

    def __iter__(self) -> Iterator[list[int]]:
        return positions(self.step, **self.arguments)


def stream(
    samples: Samples, step: int, *, batch: int, accumulate: int, rank: int = 0, world: int = 1, workers: int | None = None
) -> Iterator[dict[str, Tensor]]:
    """Collated micro-batches from optimiser ``step`` on, for ever. The process's own random state is left alone.

    Samples that are held on the device (data.held) make their batches themselves, by ``together(positions)``.
    """
    if samples.data.held:
        together: Callable[[Sequence[int]], dict[str, Tensor]] | None = getattr(samples, "together", None)
        if together is None:
            raise InputError("data.held: this stage makes its samples one by one, expected false; leave it out")
        return map(together, positions(step, batch=batch, accumulate=accumulate, rank=rank, world=world))
    loader: DataLoader[dict[str, Any]] = DataLoader(
        samples,  # type: ignore[arg-type]
        batch_sampler=_Batches(step, batch, accumulate, rank, world),  # type: ignore[arg-type]
        num_workers=samples.data.workers if workers is None else workers,
        generator=torch.Generator().manual_seed(0),
        pin_memory=torch.cuda.is_available(),
    )
    return iter(loader)


def open_faces(
    data: Data, seed: int, *, split: str = "train", features: Callable[[Sequence[Picture]], Tensor] | None = None
) -> tuple[Faces, list[str]]:
    """The training set of a config and the names of skipped files: found, subset, checked."""
    good, bad = open_pictures(data, split=split, features=features)
    return Faces(good, data, seed), bad


def open_pictures(
    data: Data, *, split: str = "train", features: Callable[[Sequence[Picture]], Tensor] | None = None
) -> tuple[list[Picture], list[str]]:
    """The pictures of a config, found, chosen and checked, and the names of skipped files. Only the chosen ones are decoded."""
    pictures = find_pictures(data.source if split == "train" else data.validation, split)
    if split == "train":
        pictures = large_enough(pictures, data)
        pictures = choose(pictures, data.subset, data.subset_seed, data.subset_method, features)
    good, bad = readable(pictures)
    return balanced(good, data.balance if split == "train" else ""), bad


def write_list(path: Path, pictures: Sequence[Picture]) -> None:
    """One chosen file name a line."""
    path.write_text("".join(f"{picture.name}\n" for picture in pictures), encoding="utf-8", errors="surrogateescape")
