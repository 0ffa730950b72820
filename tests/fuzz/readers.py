"""Damaged pictures and weight files through the readers."""

from __future__ import annotations

import io
import json
import random
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from frame import STRANGE, Case, Group, mutated, rounds
from PIL import Image, PngImagePlugin
from safetensors.torch import save

from lafr_core.images import photos
from lafr_core.latent.lora import load_lora
from lafr_core.store import checkpoint

MAX_PIXELS = 1_000_000
"""Of a picture: a run may add it twice, and what allocators keep."""


def pictures() -> dict[str, bytes]:
    """Small files of every format and of the kinds that take other ways through the decoder."""
    rng = np.random.default_rng(0)
    array = rng.integers(0, 256, (17, 24, 4), dtype=np.uint8)
    rgba = Image.fromarray(array)
    rgb, gray = rgba.convert("RGB"), rgba.convert("L")
    deep = Image.fromarray(rng.integers(0, 65536, (17, 24)).astype(np.uint16))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x0131] = 6, "a description", "a camera"
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", "<x:xmpmeta/>", zip=True)
    text.add_text("Comment", "a comment", zip=True)
    keyed = rgb.quantize(7)
    keyed.info["transparency"] = 2
    made = {
        "png": (rgba, {"format": "PNG", "pnginfo": text, "exif": exif, "dpi": (300, 300)}),
        "png16": (deep, {"format": "PNG"}),
        "png palette": (keyed, {"format": "PNG"}),
        "apng": (rgb, {"format": "PNG", "save_all": True, "append_images": [gray.convert("RGB")]}),
        "jpeg": (rgb, {"format": "JPEG", "exif": exif, "comment": "a comment", "icc_profile": bytes(200)}),
        "jpeg progressive": (gray, {"format": "JPEG", "progressive": True}),
        "jpeg cmyk": (rgb.convert("CMYK"), {"format": "JPEG"}),
        "mpo": (rgb, {"format": "MPO", "save_all": True, "append_images": [rgb]}),
        "tiff": (rgba, {"format": "TIFF", "exif": exif, "dpi": (72, 72)}),
        "tiff lzw": (rgb, {"format": "TIFF", "compression": "tiff_lzw"}),
        "tiff deflate": (gray, {"format": "TIFF", "compression": "tiff_adobe_deflate"}),
        "tiff jpeg": (rgb, {"format": "TIFF", "compression": "jpeg"}),
        "tiff16": (deep, {"format": "TIFF"}),
        "tiff pages": (rgb, {"format": "TIFF", "save_all": True, "append_images": [gray]}),
        "webp": (rgba, {"format": "WEBP", "exif": exif}),
        "webp lossless": (rgb, {"format": "WEBP", "lossless": True}),
        "webp animated": (rgb, {"format": "WEBP", "save_all": True, "append_images": [gray.convert("RGB")]}),
        "gif": (keyed, {"format": "GIF"}),
        "gif animated": (rgb, {"format": "GIF", "save_all": True, "append_images": [gray.convert("RGB")]}),
    }  # fmt: skip
    files = {}
    for name, (image, options) in made.items():
        buffer = io.BytesIO()
        image.save(buffer, **options)
        files[name] = buffer.getvalue()
    return files


def checkpoints() -> dict[str, bytes]:
    """A weight file of ours and a LoRA in the layout of kohya's trainer."""
    ours = {"lafr_kind": "adapter", "lafr_version": "1", "lafr_config": json.dumps({"width": 8, "names": ["a", {"b": [1, 2]}]})}
    weights = {"a.weight": torch.randn(4, 3).half(), "b.bias": torch.randn(4).half(), "steps": torch.tensor([3])}
    name = "lora_unet_down_blocks_0_attentions_0_proj_in"
    lora = {f"{name}.lora_down.weight": torch.randn(2, 8), f"{name}.lora_up.weight": torch.randn(8, 2)}
    lora[f"{name}.alpha"] = torch.tensor(2.0)
    return {"checkpoint": save(weights, ours), "lora": save(lora, {"ss_network_dim": "2"})}


def hostile_header(data: bytes, rng: random.Random) -> bytes:
    """A safetensors file whose header says something else in good JSON: shapes, types, offsets, metadata, nesting."""
    size = struct.unpack("<Q", data[:8])[0]
    header: dict[str, Any] = json.loads(data[8 : 8 + size])
    strange = (*STRANGE, "F16", "BOOL", "F8_E4M3", "I64", "F4", "adapter")
    for _ in range(rng.choice((1, 1, 2, 4))):
        name = rng.choice(list(header))
        entry = header[name]
        if isinstance(entry, dict) and entry and rng.random() < 0.9:
            entry[rng.choice(list(entry))] = rng.choice(strange)
        elif rng.random() < 0.5:
            header[name] = rng.choice(strange)
        else:
            header[rng.choice(("", "__metadata__", "x" * 3000, "a.b"))] = header.pop(name)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) + rng.choice((0, 0, 0, 1, -1))) + text + data[8 + size :]


def damaged_pictures(seed: int) -> Iterator[Case]:
    files = pictures()
    others = list(files.values())
    for name, data, rng in rounds(files, seed):
        salvage = rng.random() < 0.3
        read = lambda path, salvage=salvage: photos.read(path, salvage=salvage, max_pixels=MAX_PIXELS)
        yield Case(name, mutated(data, others, rng), read)


def damaged_checkpoints(seed: int) -> Iterator[Case]:
    files = checkpoints()
    others = list(files.values())
    for name, data, rng in rounds(files, seed):
        bad = hostile_header(data, rng) if rng.random() < 0.6 else mutated(data, others, rng)
        yield Case(name, bad, load_lora if name == "lora" else lambda path: checkpoint.load(path, "adapter"))


def _decode_all() -> None:
    for data in pictures().values():
        photos.decode(io.BytesIO(data))


GROUPS = {
    "pictures": Group(damaged_pictures, _decode_all),
    "checkpoints": Group(damaged_checkpoints, lambda: None),
}
