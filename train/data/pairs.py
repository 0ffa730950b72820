"""Stored latents: clean and degraded faces, encoded once instead of at every step.

    python -m train pairs --config train/configs/starter_pairs.yaml --data.source ../shared/data/faces --data.pairs runs/pairs
    accelerate launch -m train pairs …        # every process writes its share of the shards

Each round draws every picture once more, moved, mirrored and tinted, with ``pairs.versions`` degradations. All draws come from
(seed, round, picture), so a shard is the same whatever was made before; those that exist are kept, and each appears under its
name only when it is whole. The stages read the folder named by ``data.pairs`` instead of pictures.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lafr_core.errors import CheckpointError, InputError
from lafr_core.geometry import compose
from lafr_core.store.atomic import atomic
from lafr_core.store.checkpoint import write_tensors
from train.config import Config, Data
from train.data.degradation import spoil
from train.data.faces import Picture, draw_fidelity, load_picture, locate, open_pictures, to_tensor
from train.data.photos import jitter
from train.precision import amp, channels_last

log = logging.getLogger("train.pairs")
Encode = Callable[[Tensor], Tensor]
"""(B, 3, S, S) in [0, 1] -> UNet-scaled latents (B, C, S/8, S/8)."""
STRIDE = 32
"""Pixels that one cell of the adapter's deepest grid covers: stored windows lie on it, its position table is cut alike."""
FACTOR = 8
"""Pixels along the side of a latent cell."""
PLAN = "plan.json"
"""What a folder's shards were made with; others are not added to it."""


# --- making them -----------------------------------------------------------------------------------------------------


def tint(image: Tensor, generator: np.random.Generator) -> Tensor:
    """Half of the time another exposure (gamma 0.75 to 1.33) and white balance (gains of 6 %): (3, H, W) in [0, 1]."""
    if generator.random() < 0.5:
        return image
    gamma = float(np.exp(generator.uniform(-0.29, 0.29)))
    gains = torch.from_numpy(generator.uniform(0.94, 1.06, (3, 1, 1)).astype(np.float32))
    return (image.clamp(0, 1) ** gamma * gains).clamp(0, 1)


def draw(picture: Picture, generator: np.random.Generator, data: Data, versions: int) -> tuple[Tensor, Tensor]:
    """One clean crop (3, S, S) and its degraded versions (V, 3, S, S), in [0, 1].

    Photos with known landmarks are moved as a detector's error moves a crop; crops are only mirrored.
    """
    if picture.matrix is not None:
        moved = Picture(picture.name, picture.path, compose(jitter(generator), picture.matrix), picture.number)
        sharp = to_tensor(load_picture(moved, data.size))
    else:
        sharp = to_tensor(load_picture(picture, data.size))
        if generator.random() < 0.5:
            sharp = sharp.flip(-1)
    sharp = tint(sharp, generator)
    pixels: NDArray[np.float32] = np.ascontiguousarray(sharp.permute(1, 2, 0).numpy())
    low = [torch.from_numpy(spoil(pixels, generator, data.severity)[0]).permute(2, 0, 1) for _ in range(versions)]
    return sharp, torch.stack(low) if low else sharp.new_zeros(0, *sharp.shape)


class Drawing(NamedTuple):
    """One row before it is encoded; arrays, which pass between processes without shared memory."""

    pictures: NDArray[np.float32]
    """(1 + V, 3, S, S) in [0, 1]: the clean picture, then its degraded versions."""
    corner: NDArray[np.int64]
    """(2,): top and left of a window, in strides."""
    fidelity: NDArray[np.float32]
    """(V,): what aligned latents are made at."""
    bytes: NDArray[np.uint8]
    """Those of ``pictures`` that are to be kept as pixels, (0 to 1 + V, 3, S, S)."""


def drawn_row(config: Config, picture: Picture, seed: Sequence[int]) -> Drawing:
    """One picture drawn and degraded; everything comes from ``seed``."""
    stage, data = config.pairs, config.data
    generator = np.random.default_rng(list(seed))
    sharp, low = draw(picture, generator, data, stage.versions)
    corner = np.zeros(2, np.int64)
    if stage.window:
        corner = generator.integers(0, (data.size - stage.window) // STRIDE + 1, 2)
        top, left = (int(v) * STRIDE for v in corner)
        sharp, low = (x[..., top : top + stage.window, left : left + stage.window] for x in (sharp, low))
    fidelity = np.asarray([draw_fidelity(generator, data) for _ in range(stage.versions)], np.float32)
    pictures = torch.cat([sharp[None], low])
    kept = pictures[(0 if stage.pixels else 1) : (None if stage.degraded else 1)]
    return Drawing(pictures.numpy(), corner, fidelity, (kept * 255 + 0.5).clamp(0, 255).to(torch.uint8).numpy())


class Drawings(Dataset[Drawing]):
    """The rows that are still to be made, by number, for the processes that draw them."""

    def __init__(self, config: Config, pictures: Sequence[Picture], rows: Sequence[tuple[int, int]]) -> None:
        self.config, self.pictures, self.rows = config, pictures, rows

    def __getitem__(self, number: int) -> Drawing:
        around, index = self.rows[number]
        return drawn_row(self.config, self.pictures[index], [self.config.seed, around, index])

    def __len__(self) -> int:
        return len(self.rows)


class Maker:
    """Draws pictures and encodes them. ``beside`` is the starter's encoder, ``align`` the adapter, where asked for."""

    def __init__(
        self,
        config: Config,
        encode: Encode,
        beside: Encode | None = None,
        align: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        self.config, self.encode, self.beside, self.align = config, encode, beside, align

    def row(self, picture: Picture, seed: Sequence[int]) -> dict[str, Tensor]:
        """One picture's tensors: ``z_hq`` (C, h, h), ``z_lq`` (V, C, h, h), ``corner`` (2,) and what else was asked for."""
        return self.encoded(drawn_row(self.config, picture, seed))

    @torch.no_grad()
    def encoded(self, drawn: Drawing) -> dict[str, Tensor]:
        """What is stored of a drawn row."""
        stage = self.config.pairs
        pictures, fidelity = torch.from_numpy(drawn.pictures), torch.from_numpy(drawn.fidelity)
        latents = self.encode(pictures)
        row = {"z_hq": latents[0].half(), "z_lq": latents[1:].half(), "corner": torch.from_numpy(drawn.corner)}
        if self.beside is not None:
            donor = self.beside(pictures).half()
            row |= {"y_hq": donor[0], "y_lq": donor[1:]}
        if self.align is not None:
            row |= {"z_al": self.align(latents[1:], fidelity.view(-1, 1, 1, 1)).half(), "fidelity": fidelity}
        kept = torch.from_numpy(drawn.bytes)
        row |= {"sharp": kept[0]} if stage.pixels else {}
        row |= {"spoilt": kept[int(stage.pixels) :]} if stage.degraded else {}
        return {name: t.cpu().contiguous() for name, t in row.items()}


def make(config: Config, maker: Callable[[], Maker], pictures: Sequence[Picture], rank: int = 0, world: int = 1) -> Path:
    """Write the shards of every round that are not there yet; of several processes each writes every ``world``-th.

    ``maker()`` opens the networks when the first shard needs them. Raises InputError for a folder of other settings.
    """
    stage, folder = config.pairs, Path(config.data.pairs)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({error.strerror or error}); choose another data.pairs") from error
    keep_plan(folder, plan_of(config))
    shards: dict[Path, list[tuple[int, int]]] = {}
    for around in range(stage.rounds):
        # Pictures of one shard come from the whole list, so that an unfinished round favours no source.
        order = np.random.default_rng([config.seed, around]).permutation(len(pictures))[: stage.limit or None]
        for start in range(0, len(order), stage.shard):
            path = folder / f"{config.seed}_{around:02d}_{start:06d}.safetensors"
            shards[path] = [(around, int(i)) for i in order[start : start + stage.shard]]
    mine = {path: rows for path, rows in list(shards.items())[rank::world] if not path.is_file()}
    if not mine:
        return folder
    drawings = Drawings(config, pictures, [row for rows in mine.values() for row in rows])
    stream = iter(DataLoader(drawings, batch_size=None, num_workers=stage.workers, collate_fn=_as_it_is))
    opened = maker()
    for path, rows in mine.items():
        made = [opened.encoded(next(stream)) for _ in rows]
        shard = {name: torch.stack([row[name] for row in made]).contiguous() for name in made[0]}
        with atomic(path) as part:
            write_tensors(shard, part, {"pictures": json.dumps([pictures[i].name for _, i in rows])})
        log.info("%s", path.name)
    return folder


def _as_it_is(drawing: Any) -> Any:
    return drawing


def plan_of(config: Config) -> dict[str, Any]:
    """What must agree between shards of one folder: the autoencoder, the size, the degradation and what is kept."""
    from train.engine.checkpoints import identity_of

    stage = {name: value for name, value in vars(config.pairs).items() if name not in ("rounds", "limit", "shard", "workers")}
    models = {name: identity_of(getattr(config.models, name)) for name in ("vae", *(("adapter",) if stage["aligned"] else ()))}
    family, data = config.models.family, config.data
    shares = {"balance": data.balance} if data.balance else {}
    return {"models": models, "family": family, "size": data.size, "severity": data.severity, **shares, **stage}


def keep_plan(folder: Path, plan: Mapping[str, Any]) -> None:
    """Note the plan in the folder, or hold it against the one there. Raises InputError naming what differs, or where what is
    there is none of ours."""
    file = folder / PLAN
    if os.path.lexists(file):
        try:
            known = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            known = None
        if not isinstance(known, dict):
            raise InputError(f"{file}: expected the plan of stored pairs, got another file; choose another data.pairs")
        different = [key for key in {**known, **plan} if known.get(key) != plan.get(key)]
        if different:
            key = different[0]
            raise InputError(
                f"{folder}: holds pairs whose {key} is {known.get(key)!r}, this run's is {plan.get(key)!r}; "
                "use the same settings or another data.pairs"
            )
        return
    strange = next(folder.glob("*.safetensors"), None)
    if strange is not None:
        raise InputError(f"{strange}: no plan beside it says that these are stored pairs; choose another data.pairs")
    with atomic(file) as part:
        Path(part).write_text(json.dumps(dict(plan), indent=1), encoding="utf-8")


def run(config: Config) -> Path:
    """Store the pairs a config describes; returns their folder."""
    from train.engine.parts import adapter_from, tuned, vae_of
    from train.engine.run import join_processes, placed

    if not config.data.pairs:
        raise InputError("pairs: expected a folder to fill; set data.pairs")
    device = join_processes()
    stage = config.pairs

    def maker() -> Maker:
        fast = lambda vae: lambda x: _encoded(vae, x, device, stage.precision)
        vae = tuned(vae_of(config, device))
        beside = None
        if stage.beside:
            from lafr_core.latent.vae import open_vae

            beside = fast(tuned(open_vae(None, device)))
        align = None
        if stage.aligned:
            adapter = adapter_from(config.models.adapter or "").to(device)

            def align(latents: Tensor, fidelity: Tensor) -> Tensor:
                with amp(device, stage.precision):
                    return adapter(latents.to(device), fidelity.to(device)).latents.float()

        return Maker(config, fast(vae), beside, align)

    rank, world = placed()
    return make(config, maker, open_pictures(config.data)[0], rank, world)


def _encoded(vae: Any, pixels: Tensor, device: torch.device, precision: str) -> Tensor:
    with amp(device, precision):
        return vae.encode(channels_last(pixels.to(device))).float()


def main(arguments: Sequence[str]) -> None:
    """The command line of this stage."""
    from train.engine.run import command

    command(run, arguments, __doc__)


# --- reading them ----------------------------------------------------------------------------------------------------


class Shards:
    """The shards of one folder, rows read from disk as they are asked for, or whole batches from memory."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.files = sorted(self.folder.glob("*.safetensors"))
        if not self.files:
            raise InputError(
                f"{folder}: expected shards (.safetensors) there, found none; make some with python -m train pairs"
            )
        self.rows: list[tuple[Path, int]] = []
        self.kept: set[str] = set()
        self.loaded: dict[str, Tensor] = {}
        for file in self.files:
            try:
                with safe_open(str(file), framework="pt") as shard:
                    self.kept = set(shard.keys())
                    self.rows += [(file, row) for row in range(shard.get_slice("z_hq").get_shape()[0])]
                    self.versions = int(shard.get_slice("z_lq").get_shape()[1])
                    self.cells = int(shard.get_slice("z_hq").get_shape()[-1])
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{file}: not a readable shard ({error}); delete it and run train pairs again") from error

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, row: int, name: str, *cut: Any) -> Tensor:
        """``name`` of one row, or the part of it that ``cut`` (an index into it) names."""
        path, number = self.rows[row]
        with safe_open(str(path), framework="pt") as file:
            index = (number, *cut)
            return file.get_slice(name)[index]

    def has(self, name: str) -> bool:
        return name in self.kept

    def together(self, name: str, device: torch.device) -> Tensor:
        """``name`` of all rows (N, …) in the device's memory, read at the first call."""
        if name not in self.loaded:
            parts = []
            for file in self.files:
                with safe_open(str(file), framework="pt") as shard:
                    parts.append(shard.get_tensor(name).to(device))
            self.loaded[name] = torch.cat(parts)
        return self.loaded[name]


class Draws(NamedTuple):
    """What a sample is made of."""

    second: bool
    row: int
    version: int | None
    fidelity: float
    corners: list[list[int]]
    """Top and left cell of each window."""


class StoredPairs:
    """Stream position -> ``z_lq``, ``z_hq`` (C, h, h) float32, ``fidelity``, ``kind`` (0 first folder, 1 second), ``index``.

    With data.window: ``corner`` (W, 2) in cells and ``sharp`` (W, 3, s, s) pixels of the windows (of the second kind's smaller
    ones the rest is 0). Without: ``hq`` (3, S, S), where pixels were stored. ``z_al`` where it was stored; its fidelity then.
    Without ``degraded`` only the clean side: no ``z_lq`` and ``z_al``. ``device``: where :meth:`together` holds them.
    """

    def __init__(
        self, data: Data, seed: int, *, pixels: bool = True, degraded: bool = True, device: torch.device | str = "cpu"
    ) -> None:
        self.data, self.seed, self.pixels, self.degraded, self.device = data, seed, pixels, degraded, torch.device(device)
        self.first = Shards(data.pairs)
        self.second = Shards(data.second_pairs) if data.second_pairs and data.second_share > 0 else None
        files = [*self.first.files, *(self.second.files if self.second else ())]
        self.pictures = [Picture(f"{path.parent.name}/{path.name}", path) for path in files]
        both = [s for s in (self.first, self.second) if s is not None]
        if pixels and not all(s.has("sharp") for s in both):
            raise InputError(f"{data.pairs}: holds no pixels, which this stage's terms need; store them with pairs.pixels true")
        if degraded and not all(s.versions for s in both):
            raise InputError(f"{data.pairs}: holds clean latents alone (pairs.versions 0); this stage needs degraded ones too")
        if data.window > self.first.cells:
            raise InputError(f"data.window: expected at most the stored {self.first.cells} cells, got {data.window}")

    def __len__(self) -> int:
        return len(self.first)

    def draws(self, position: int) -> Draws:
        """What is drawn for a position: the same for single samples and whole batches."""
        data = self.data
        g = np.random.default_rng([self.seed, 8, position])
        second = self.second is not None and g.random() < data.second_share
        shards = self.second if second and self.second is not None else self.first
        row = locate(position, len(shards), self.seed)[1]
        version = int(g.integers(shards.versions)) if self.degraded else None
        fidelity = draw_fidelity(g, data)
        corners = [corner(g, data, shards.cells) for _ in range(data.windows)] if data.window else []
        return Draws(second, row, version, fidelity, corners)

    def together(self, positions: Sequence[int]) -> dict[str, Tensor]:
        """The samples of ``positions``, stacked, made on the device from what is held there (data.held)."""
        drawn, shards, device = [self.draws(p) for p in positions], self.first, self.device
        rows = torch.tensor([d.row for d in drawn], device=device)
        batch = {
            "z_hq": shards.together("z_hq", device)[rows].float(),
            "fidelity": torch.tensor([d.fidelity for d in drawn], dtype=torch.float32, device=device),
            "kind": torch.zeros_like(rows),
            "index": rows,
        }
        if self.degraded:
            versions = torch.tensor([d.version for d in drawn], device=device)
            batch["z_lq"] = shards.together("z_lq", device)[rows, versions].float()
            if shards.has("z_al"):
                names = ("z_al", "fidelity")
                batch |= {name: shards.together(name, device)[rows, versions].float() for name in names}
        if self.data.window:
            batch["corner"] = torch.tensor([d.corners for d in drawn], device=device)
            if self.pixels:
                batch["sharp"] = self._windows(rows, batch["corner"])
        elif self.pixels:
            batch["hq"] = shards.together("sharp", device)[rows].float() / 255
        return batch

    def _windows(self, rows: Tensor, corners: Tensor) -> Tensor:
        """Pixels (B, W, 3, s, s) of the windows at ``corners`` (B, W, 2) cells of ``rows`` (B,)."""
        reach = torch.arange(self.data.window * FACTOR, device=rows.device)
        ys, xs = (corners[..., axis, None] * FACTOR + reach for axis in (0, 1))  # (B, W, s)
        pixels = self.first.together("sharp", rows.device).permute(0, 2, 3, 1)
        found = pixels[rows[:, None, None, None], ys[..., :, None], xs[..., None, :]]  # (B, W, s, s, 3)
        return found.permute(0, 1, 4, 2, 3).float() / 255

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        data = self.data
        second, row, version, fidelity, corners = self.draws(position)
        shards = self.second if second and self.second is not None else self.first
        sample = {
            "z_hq": shards.read(row, "z_hq").float(),
            "fidelity": torch.tensor(fidelity, dtype=torch.float32),
            "kind": torch.tensor(int(second)),
            "index": torch.tensor(row),
        }
        if version is not None:
            sample["z_lq"] = shards.read(row, "z_lq", version).float()
        if version is not None and shards.has("z_al"):
            sample |= {"z_al": shards.read(row, "z_al", version).float(), "fidelity": shards.read(row, "fidelity")[version]}
        if data.window:
            sample["corner"] = torch.tensor(corners)
            if self.pixels:
                sample["sharp"] = torch.stack([self._sharp(shards, row, at, second) for at in sample["corner"].tolist()])
        elif self.pixels:
            sample["hq"] = shards.read(row, "sharp").float() / 255
        return sample

    def _sharp(self, shards: Shards, row: int, at: list[int], second: bool) -> Tensor:
        side = (self.data.second_window or self.data.window) if second else self.data.window
        ys, xs = (slice(v * FACTOR, (v + side) * FACTOR) for v in at)
        out = torch.zeros(3, self.data.window * FACTOR, self.data.window * FACTOR)
        out[:, : side * FACTOR, : side * FACTOR] = shards.read(row, "sharp", slice(None), ys, xs).float() / 255
        return out


MIDDLE = ((0.19, 0.73), (0.16, 0.85))
"""Rows and columns, as shares of the places a window may have, where it lies over eyes, nose or mouth of an aligned face."""


def corner(g: np.random.Generator, data: Data, cells: int) -> list[int]:
    """Top and left cell of one window: anywhere that leaves room for its surroundings, or over the face's middle."""
    side = max(data.window, data.around)
    margin, places = (side - data.window) // 2, cells - side
    middle = data.middle > 0 and g.random() < data.middle
    ends = [(int(low * places), int(high * places)) if middle else (0, places) for low, high in MIDDLE]
    return [int(g.integers(low, high + 1)) + margin for low, high in ends]
