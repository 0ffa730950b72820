"""What all fuzzers share: mutations that follow from a seed, and a watch over what reading a file takes and does.

A fuzzer is a :class:`Group` of cases without end; ``fuzz.py`` runs one in a process of its own. Each case is a file. What reads
it may return a result or raise LafrError with the file's path; it may not raise anything else, hang, take much memory, write
where it may not, start a program or open a connection. What else a group promises, its cases check themselves: they raise
AssertionError.
"""

from __future__ import annotations

import itertools
import os
import random
import resource
import shutil
import sys
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lafr_core.errors import LafrError

T = TypeVar("T")

ADDRESSES = 4 << 30
"""Bytes of addresses that a run may add: what is asked for beyond raises MemoryError instead of taking the machine down."""
EXTREMES = (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x80\0\0\0", b"\0\0\0\x80", b"\0\1")
STRANGE: tuple[Any, ...] = (
    -1, 0, 2**31, 2**63, 2**64, 1.5, 1e999, None, True, "", "x" * 5000, "\udc80", [], {}, [[]], [2**40, 2**40], [0, 0],
    "{" * 2000, "[" * 100_000, "1" * 6000, "2",
)  # fmt: skip
"""Values that nobody would write into a file of JSON."""
WRITING = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod", "os.link", "os.symlink")
LEAVING = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect", "socket.getaddrinfo")
MOST_FAULTS = 5


@dataclass(frozen=True)
class Case:
    """One file, and what reads it."""

    name: str
    """The kind of file."""
    data: bytes
    read: Callable[[Path], object]
    suffix: str = ""
    """Of the file's name, where that decides what reads it."""


@dataclass(frozen=True)
class Group:
    """Cases of one kind, and what reading one of them may take."""

    cases: Callable[[int], Iterator[Case]]
    """Seed -> cases without end."""
    warm: Callable[[], object]
    """What loads whatever is loaded at the first use: that is no growth."""
    slow: float = 5.0
    """Seconds for one small file."""
    memory: int = 300 << 20
    """Bytes that a whole run may add to the process."""
    writes: bool = False
    """Whether a case may write: below its own path with ``.d`` behind it, nowhere else."""


def rounds(files: Mapping[str, T], seed: int) -> Iterator[tuple[str, T, random.Random]]:
    """The files one after the other, again and again, each time with random numbers of its own."""
    for number in itertools.count():
        for name, data in files.items():
            yield name, data, random.Random(f"{seed} {number} {name}")


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
        return checksummed(whole)
    return whole


def checksummed(file: bytes) -> bytes:
    """A PNG whose chunks, as far as they can be followed, have the right checksums."""
    mended, at = bytearray(file), 8
    while at + 12 <= len(mended):
        end = at + 8 + int.from_bytes(mended[at : at + 4], "big")
        if end + 4 > len(mended):
            break
        mended[end : end + 4] = zlib.crc32(mended[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(mended)


def place_of(path: Path) -> Path:
    """The folder in which the case in the file ``path`` may write."""
    return path.with_name(f"{path.name}.d")


class Watch:
    """Notes what a reader does besides reading: an audit hook, which sees Python's own calls, not those of C libraries."""

    def __init__(self) -> None:
        self.on = False
        self.place = ""
        """Where it may write; '' = nowhere."""
        self.seen: list[str] = []
        sys.addaudithook(self)

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open":
            path, mode, flags = args
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            if (writes or set(mode or "") & set("wax+")) and not self._inside(path):
                self.seen.append(f"open {args}")
        elif event in LEAVING or (event in WRITING and not all(map(self._inside, args[: _PATHS.get(event, 1)]))):
            self.seen.append(f"{event} {args}")

    def _inside(self, path: Any) -> bool:
        if not self.place or not isinstance(path, (str, bytes, os.PathLike)):
            return False
        real = os.path.realpath(os.fsdecode(path))
        return real == self.place or real.startswith(self.place + os.sep)


_PATHS = {"os.rename": 2, "os.link": 2}
"""How many of an event's first arguments are paths."""


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def fuzz(group: Group, seconds: float, seed: int, folder: Path) -> dict[str, Any]:
    """Counts, and the faults found, each with the file that shows it (kept in ``folder``)."""
    warnings.simplefilter("ignore")
    watch, counts, faults = Watch(), Counter[str](), []
    folder = Path(os.path.realpath(folder))
    group.warm()
    slowest, start, before = 0.0, time.monotonic(), _peak()
    with open("/proc/self/statm") as file:
        addresses = int(file.read().split()[0]) * resource.getpagesize() + ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (addresses, addresses))
    for number, case in enumerate(group.cases(seed)):
        if time.monotonic() - start > seconds or len(faults) >= MOST_FAULTS:
            break
        path = folder / f"case{number}{case.suffix}"
        path.write_bytes(case.data)
        fault, began = "", time.process_time()  # of a busy machine the clock on the wall says nothing
        watch.place = str(place_of(path)) if group.writes else ""
        watch.on = True
        try:
            case.read(path)
            counts["read"] += 1
        except LafrError as error:
            counts["refused"] += 1
            fault = "" if str(path) in str(error) else f"a sentence without the path: {error}"
        except BaseException as error:
            fault = f"{type(error).__name__}: {error}"
        watch.on = False
        taken = time.process_time() - began
        slowest = max(slowest, taken)
        fault = fault or (f"took {taken:.1f} s" if taken > group.slow else "")
        fault = fault or (f"took {(_peak() - before) >> 20} MB" if _peak() - before > group.memory else "")
        fault = fault or ", ".join(watch.seen)
        counts[case.name] += 1
        if fault:
            faults.append(f"{path} ({case.name}, seed {seed}): {fault[:600]}")
            watch.seen.clear()
        else:  # a file that stays shows the fault, or what killed the process
            path.unlink()
            shutil.rmtree(place_of(path), ignore_errors=True)
    grown = (_peak() - before) >> 20
    return {"cases": counts["read"] + counts["refused"], **counts, "slowest_s": round(slowest, 3), "grown_mb": grown,
            "faults": faults}  # fmt: skip
