"""Damaged files through the readers, in a process of their own: python readers.py GROUP SECONDS SEED FOLDER -> counts as JSON.

Each case is a good file with a few mutations that follow from SEED and the case's number. A reader may return a result or raise
LafrError; it may not raise anything else, hang, take much memory, write, start a program or open a connection.
"""

from __future__ import annotations

import io
import json
import os
import random
import resource
import struct
import sys
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from safetensors.torch import save

from lafr_core.errors import LafrError
from lafr_core.images import photos
from lafr_core.latent.lora import load_lora
from lafr_core.store import checkpoint

MAX_PIXELS = 1_000_000
MEMORY = 300 << 20
"""Bytes that a whole run may add to the process: a picture of MAX_PIXELS, twice, and what allocators keep."""
ADDRESSES = 4 << 30
"""Bytes of addresses that it may add: what is asked for beyond raises MemoryError instead of taking the machine down."""
SLOW = 5.0
"""Seconds for one small file."""
EXTREMES = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x80\0\0\0", b"\0\0\0\x80", b"\0\1")
WRITING = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod", "os.link", "os.symlink")
LEAVING = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect", "socket.getaddrinfo")

Read = Callable[[Path], object]


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


def mutated(data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """The file with one to six mutations; lengths and checksums around them are mended now and then, so that they go deeper."""
    file = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        at = rng.randrange(len(file) + 1)
        at = min(at, rng.randrange(65)) if rng.random() < 0.4 else at  # headers are short, and matter
        length = rng.choice((1, 2, 4, rng.randrange(1, 65)))
        kind = rng.randrange(8)
        if kind == 0 and len(file) > 1:
            del file[rng.randrange(1, len(file)) :]
        elif kind == 1:
            file[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 2:
            file[at : at + 1] = bytes([(file[at : at + 1] or b"\0")[0] ^ 1 << rng.randrange(8)])
        elif kind == 3:
            extreme = rng.choice(EXTREMES)
            file[at : at + len(extreme)] = extreme
        elif kind == 4:
            del file[at : at + length]
        elif kind == 5:
            file[at:at] = rng.randbytes(length)
        elif kind == 6:
            file[at:at] = file[at : at + length] * rng.choice((1, 2, 400))
        else:
            other = rng.choice(others)
            start = rng.randrange(len(other))
            file[at : at + length] = other[start : start + length]
    whole = bytes(file)
    if data.startswith(b"\x89PNG") and rng.random() < 0.7:
        return _checksummed(whole)
    return whole


def hostile_header(data: bytes, rng: random.Random) -> bytes:
    """A safetensors file whose header says something else in good JSON: shapes, types, offsets, metadata, nesting."""
    size = struct.unpack("<Q", data[:8])[0]
    header: dict[str, Any] = json.loads(data[8 : 8 + size])
    strange: tuple[Any, ...] = (
        -1, 0, 2**31, 2**63, 2**64, 1.5, 1e999, None, True, "", "x" * 5000, "\udc80", [], {}, [[]], [2**40, 2**40], [0, 0],
        "F16", "BOOL", "F8_E4M3", "I64", "F4", "{" * 2000, "[" * 100_000, "1" * 6000, "adapter", "2",
    )  # fmt: skip
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


def _checksummed(file: bytes) -> bytes:
    """A PNG whose chunks, as far as they can be followed, have the right checksums."""
    mended, at = bytearray(file), 8
    while at + 12 <= len(mended):
        end = at + 8 + int.from_bytes(mended[at : at + 4], "big")
        if end + 4 > len(mended):
            break
        mended[end : end + 4] = zlib.crc32(mended[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(mended)


def cases(group: str, seed: int) -> Iterator[tuple[str, bytes, Read]]:
    """Endless: the kind of file, its bytes, and what reads it."""
    files = pictures() if group == "pictures" else checkpoints()
    others = list(files.values())
    number = 0
    while True:
        for name, data in files.items():
            rng = random.Random(f"{seed} {number} {name}")
            if group == "pictures":
                salvage = rng.random() < 0.3
                yield name, mutated(data, others, rng), lambda p, s=salvage: photos.read(p, salvage=s, max_pixels=MAX_PIXELS)
            else:
                bad = hostile_header(data, rng) if rng.random() < 0.6 else mutated(data, others, rng)
                yield name, bad, (load_lora if name == "lora" else lambda p: checkpoint.load(p, "adapter"))
            number += 1


class Watch:
    """Notes what a reader does besides reading: an audit hook, which sees Python's own calls, not those of C libraries."""

    def __init__(self) -> None:
        self.on = False
        self.seen: list[str] = []
        sys.addaudithook(self)

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open":
            _, mode, flags = args
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            if writes or set(mode or "") & set("wax+"):
                self.seen.append(f"open {args}")
        elif event in WRITING or event in LEAVING:
            self.seen.append(f"{event} {args}")


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def fuzz(group: str, seconds: float, seed: int, folder: Path) -> dict[str, Any]:
    """Counts, and the faults found, each with the file that shows it (kept in ``folder``)."""
    warnings.simplefilter("ignore")
    watch, counts, faults = Watch(), Counter[str](), []
    slowest, start = 0.0, time.monotonic()
    for data in (pictures() if group == "pictures" else {}).values():  # what is imported at the first use is no growth
        photos.decode(io.BytesIO(data))
    before = _peak()
    with open("/proc/self/statm") as file:
        addresses = int(file.read().split()[0]) * resource.getpagesize() + ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (addresses, addresses))
    for number, (name, data, read) in enumerate(cases(group, seed)):
        if time.monotonic() - start > seconds or len(faults) >= 5:
            break
        path = folder / f"case{number}"
        path.write_bytes(data)
        fault, began = "", time.process_time()  # of a busy machine the clock on the wall says nothing
        watch.on = True
        try:
            read(path)
            counts["read"] += 1
        except LafrError as error:
            counts["refused"] += 1
            fault = "" if str(path) in str(error) else f"a sentence without the path: {error}"
        except BaseException as error:
            fault = f"{type(error).__name__}: {error}"
        watch.on = False
        taken = time.process_time() - began
        slowest = max(slowest, taken)
        fault = fault or (f"took {taken:.1f} s" if taken > SLOW else "")
        fault = fault or (f"took {(_peak() - before) >> 20} MB" if _peak() - before > MEMORY else "")
        fault = fault or ", ".join(watch.seen)
        counts[name] += 1
        if fault:
            faults.append(f"{path} ({name}, seed {seed}): {fault[:300]}")
            watch.seen.clear()
        else:
            path.unlink()  # a file that stays shows the fault, or what killed the process
    grown = (_peak() - before) >> 20
    return {"cases": counts["read"] + counts["refused"], **counts, "slowest_s": round(slowest, 3), "grown_mb": grown,
            "faults": faults}  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(fuzz(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))))
