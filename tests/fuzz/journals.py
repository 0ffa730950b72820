"""Damaged and hostile journals beside results that a command then works on.

Whatever the journal says: no traceback, no file replaced but an untouched result of the run that wrote the journal, nothing
written outside OUT, the journal only ever longer.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fakes import face_at, parts
from frame import STRANGE, Case, Group, mutated, place_of, rounds
from PIL import Image

from lafr_core.app import arguments, cli, signature
from lafr_core.app.commands import detect, restore
from lafr_core.app.journal import NAME
from lafr_core.errors import InputError

HERE = b"@HERE@"
"""Stands in a journal for the folder of its case."""
SIZE = (24, 32)
SCRIPT = "</script><script>alert(1)</script>"
DEEP = r'"@(\d+) DEEP@"'
"""Stands for a list in a list in a list ..., so many deep."""
PATHS = (
    "../diary.txt", "../in/a.jpg", "../in/b.jpg", "b.png", "a.png", "a.png/", "./a.png", "../out/a.png", "sub/../a.png", NAME,
    "", ".", "..", "/", "/etc/passwd", "~", "a\0b", "a" * 300, "a/" * 3000, "\udcff.png", "new.png", "new/new.png",
    "../new.png", "*", "sub", "a.jpg.png", "A.PNG",
)  # fmt: skip
"""Names of results: other files', of places outside, and such as no file has."""
COMMANDS: dict[str, list[str]] = {
    "resume": ["restore", "in", "-o", "out", "--resume"],
    "other settings": ["restore", "in", "-o", "out", "--resume", "--fidelity", "0", "--report", "out/r.json"],
    "gallery": ["restore", "in", "-o", "out", "--resume", "--gallery", "out/g.html", "--report", "out/r.json"],
    "plain": ["restore", "in", "-o", "out"],
    "one": ["restore", "in/a.jpg", "-o", "out", "--resume"],
    "detect": ["detect", "in", "-o", "out", "--resume"],
    "rehearsal": ["restore", "in", "-o", "out", "--resume", "--dry-run"],
    "in place": ["restore", "out", "in", "-r", "-o", "out", "--resume"],
}
RESULTS = re.compile(r"out/(.*\.png|r\.json|g\.html|faces\.json|\.lafr-journal[^/]*\.jsonl)")


@dataclass(frozen=True)
class World:
    """A folder of photos, and what a run made of one of them: the files by their paths."""

    files: dict[str, bytes]
    journal: bytes

    def lay(self, folder: Path, journal: bytes, name: str, edited: bool, crowded: bool) -> None:
        for path, data in self.files.items():
            if path == "out/b.png" and not crowded:
                continue
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
        (folder / "out" / name).write_bytes(journal.replace(HERE, str(folder).encode()))
        if edited:
            (folder / "out/a.png").write_bytes(b"edited by hand")


def _picture(seed: int, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.frombytes("RGB", SIZE, random.Random(seed).randbytes(3 * SIZE[0] * SIZE[1])).save(buffer, kind)
    return buffer.getvalue()


def _run(folder: Path, command: list[str]) -> tuple[int, str]:
    paths = [str(folder / text) if text.partition("/")[0] in ("in", "out") else text for text in command]
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = cli.main(paths)
    return code, said.getvalue()


def world() -> World:
    """What a run leaves: OUT/a.png of in/a.jpg, and its journal. OUT/b.png, in the way of in/b.jpg, is somebody's."""
    models = parts([face_at(2, 2, 20)])
    arguments.open_models = lambda *_, **__: models  # type: ignore[assignment]
    signature.models = lambda *_: {"starter": "as it is"}  # the weights' content takes longer than all the rest
    detect.open_detector = restore.open_detector = lambda *_, **__: models.detector  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        (folder / "in").mkdir()
        (folder / "in/a.jpg").write_bytes(_picture(1, "JPEG"))
        assert _run(folder, COMMANDS["plain"])[0] == 0
        (folder / "in/b.jpg").write_bytes(_picture(2, "JPEG"))
        (folder / "out/b.png").write_bytes(_picture(3, "PNG"))
        (folder / "out/sub").mkdir()
        (folder / "out/sub/c.png").write_bytes(_picture(4, "PNG"))
        (folder / "diary.txt").write_text("dear diary")
        journal = (folder / "out" / NAME).read_bytes().replace(str(folder).encode(), HERE)
        (folder / "out" / NAME).unlink()
        return World(_contents(folder), journal)


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rewritten(journal: bytes, rng: random.Random) -> bytes:
    """Good JSON lines that say something else: values, names, keys given twice, lines given twice, in another order."""
    lines = journal.decode().splitlines()
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(lines))
        kind = rng.randrange(6)
        if kind == 0:
            lines.insert(rng.randrange(len(lines) + 1), lines[at])
        elif kind == 1 and len(lines) > 2:
            lines.insert(rng.randrange(len(lines)), lines.pop(at))
        elif kind == 2:
            name = rng.choice(("output", "source", "at", "run", "record", "source_stamp"))
            lines[at] = lines[at][:-1] + f', "{name}": {json.dumps(rng.choice((*STRANGE, *PATHS)))}' + "}"
        else:
            lines[at] = _changed(lines[at], rng)
    text = re.sub(DEEP, lambda found: "[" * int(found[1]) + "]" * int(found[1]), "\n".join(lines))
    return text.encode("utf-8", "surrogatepass") + rng.choice((b"\n", b"\n", b"", b"\r\n", b"\0", b"\n\n"))


def _changed(line: str, rng: random.Random) -> str:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return line
    if not isinstance(entry, dict) or not entry:
        return line
    if rng.random() < 0.4 and "output" in entry:
        entry[rng.choice(("output", "output", "source"))] = rng.choice(PATHS)
        return json.dumps(entry)
    inner = entry
    while True:
        name = rng.choice(list(inner))
        if not (isinstance(inner[name], dict) and inner[name] and rng.random() < 0.8):
            break
        inner = inner[name]
    if rng.random() < 0.2:
        del inner[name]
    elif isinstance(inner[name], list) and inner[name] and rng.random() < 0.7:
        inner[name][rng.randrange(len(inner[name]))] = rng.choice((*STRANGE, SCRIPT))
    else:
        deep = f"@{rng.choice((rng.randrange(1, 1100), 100_000))} DEEP@"
        inner[rng.choice((name, name, "another"))] = rng.choice((*STRANGE, SCRIPT, *PATHS, *[deep] * 12))
    return json.dumps(entry)


def damaged_journals(seed: int) -> Iterator[Case]:
    made = world()
    for name, command, rng in rounds(COMMANDS, seed):
        journal = rewritten(made.journal, rng) if rng.random() < 0.6 else mutated(made.journal, [made.journal], rng)
        if rng.random() < 0.5:  # what it said is still there, before or behind: the command goes on, with more to believe
            journal = rng.choice((made.journal + journal, journal + b"\n" + made.journal))
        file = NAME if rng.random() < 0.9 else ".lafr-journal.process0001.jsonl"
        edited, crowded = rng.random() < 0.25, rng.random() < 0.3
        yield Case(name, journal, _working(made, command, file, edited, crowded))


def _working(made: World, command: list[str], name: str, edited: bool, crowded: bool) -> Callable[[Path], None]:
    def work(path: Path) -> None:
        folder = place_of(path)
        made.lay(folder, path.read_bytes(), name, edited, crowded)
        before = _contents(folder)
        code, said = _run(folder, command)
        _judge(before, _contents(folder), code, said, command, edited)
        if code == 2:
            raise InputError(said)

    return work


def _judge(before: dict[str, bytes], after: dict[str, bytes], code: int, said: str, command: list[str], edited: bool) -> None:
    """Raise AssertionError where a promise is broken."""
    assert code in (0, 1, 2), f"exit code {code}: {said}"
    assert "Traceback" not in said and not re.search(r"\w(Error|Exception|Interrupt)\b", said), said
    assert all(line.startswith("lafr: ") for line in said.splitlines()), said
    assert code != 2 or len(said.splitlines()) == 1, said
    for path, data in before.items():
        assert path in after, f"{path} is gone: {said}"
        if ".lafr-journal" in path:
            assert after[path].startswith(data), f"{path} was changed: {said}"
        elif path != "out/a.png" or edited or "--resume" not in command:
            assert after[path] == data, f"{path} was replaced: {said}"
        else:
            Image.open(io.BytesIO(after[path])).load()
    new = after.keys() - before.keys()
    assert all(RESULTS.fullmatch(path) for path in new), f"{sorted(new)}: {said}"
    assert "--dry-run" not in command or after == before, f"{sorted(new)} in a rehearsal: {said}"
    assert SCRIPT.encode() not in after.get("out/g.html", b""), "the gallery holds a program"


GROUPS = {"journal": Group(damaged_journals, world, writes=True)}
