"""What a run may write. The one rule for every command: no file that the run did not make is ever replaced."""

from __future__ import annotations

import contextlib
import errno
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import InputError
from .atomic import publish, temporary_name


def nobody(path: Path) -> bool:
    """The default answer to "did the run that is being resumed make this file?"."""
    return False


class Outputs:
    """The files one run writes, asked for before it works and written whole or not at all.

    inputs: files the run reads; they are never written, whatever their spelling, through links or not, ``overwrite`` or not.
    ours: tells the files that the run being resumed made, which may be replaced. overwrite: other files may be, too.
    """

    def __init__(
        self, inputs: Iterable[Path] = (), *, overwrite: bool = False, ours: Callable[[Path], bool] = nobody, hint: str = ""
    ) -> None:
        self.overwrite = overwrite
        self.ours = ours
        self.hint = hint or "choose another name, or --overwrite to replace it"
        self._inputs = Files(inputs)
        self._made: set[str] = set()

    def check(self, *paths: Path) -> None:
        """Raise InputError for the first path that may not be written: an input, a file of somebody else, one named twice."""
        seen: set[str] = set()
        for path in paths:
            self._check(path)
            if problem := _no_room(path):
                raise InputError(f"{path}: cannot be written ({problem}); choose another place, or change the permissions")
            if _spelling(path) in seen:
                raise InputError(f"{path}: named for two results of one run; give each its own name")
            seen.add(_spelling(path))

    @contextmanager
    def writing(self, path: Path) -> Iterator[Path]:
        """A temporary name beside ``path`` to write to; it becomes ``path`` when the block ends well and is deleted otherwise.

        What writes to it calls it ``path`` in its messages; an OSError that leaves the block does so by itself. Missing
        folders are made. Raises InputError when ``path`` may not be written, also where that came true meanwhile.
        """
        path = Path(path)
        self._check(path)
        seen = _state(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_name(path)
        try:
            yield temporary
            _flush(temporary)
            if seen is None:
                _publish(temporary, path, self.hint)
            elif self.overwrite or _state(path) == seen:
                os.replace(temporary, path)
            else:
                raise InputError(f"{path}: somebody has changed this file meanwhile; {self.hint}")
            self._made.add(_spelling(path))
        except OSError as error:
            if error.filename == os.fspath(temporary):  # people know the file by its name
                error.filename = os.fspath(path)
            raise
        finally:
            with contextlib.suppress(OSError):  # the folder, or the disk, has gone: what failed before says so
                temporary.unlink(missing_ok=True)

    def _check(self, path: Path) -> None:
        if path in self._inputs:
            raise InputError(f"{path}: the result would overwrite this input; choose another output folder with -o")
        try:
            folder, there = path.is_dir() and not path.is_symlink(), os.path.lexists(path)
            special = there and not (path.is_symlink() or path.is_file())
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror or error}); choose another name") from error
        if folder:
            raise InputError(f"{path}: a folder of this name is there; choose another name")
        if there and not self._may_replace(path):
            raise InputError(f"{path}: a file is there already that this run did not make; {self.hint}")
        if special:
            raise InputError(f"{path}: a pipe, socket or device of this name is there; choose another name")

    def _may_replace(self, path: Path) -> bool:
        return self.overwrite or _spelling(path) in self._made or (path.is_file() and self.ours(path))


class Files:
    """Files themselves, whatever they are called: ``path in files`` through links and in any spelling.

    A file is told by its number on the disk. Some disks (exFAT through FUSE, network shares) give a file another number under
    another spelling: there its name, in which case and normal form do not count, tells it with its size and time.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._numbers: set[tuple[int, int]] = set()
        self._looks: set[tuple[str, int, int]] = set()
        for path in paths:
            if (stat := _stat(path)) is not None:
                self._numbers.add((stat.st_dev, stat.st_ino))
                self._looks.add((_spelling(path), stat.st_size, stat.st_mtime_ns))

    def __contains__(self, path: Path) -> bool:
        stat = _stat(path)
        if stat is None:
            return False
        looks = _spelling(path), stat.st_size, stat.st_mtime_ns
        return (stat.st_dev, stat.st_ino) in self._numbers or looks in self._looks


def _stat(path: Path) -> os.stat_result | None:
    try:
        return os.stat(path)
    except (OSError, ValueError):
        return None


def can_be_named(path: Path) -> bool:
    """Whether the disk takes such a name: none that is too long, or no text where names are text (exFAT, macOS, Windows)."""
    try:
        os.lstat(path)
    except OSError as error:
        return error.errno not in (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL)
    except ValueError:
        return False
    return True


def _no_room(path: Path) -> str | None:
    """Why no file can be made at ``path``, whose folders need not be there yet; None where nothing speaks against it."""
    folder = path.absolute().parent
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    if not os.path.isdir(folder):
        return f"{folder} is no folder"
    return None if os.access(folder, os.W_OK | os.X_OK) else f"nothing may be written in {folder}"


def _state(path: Path) -> tuple[int, ...] | None:
    """What changes when somebody writes to the name; None where it is free."""
    try:
        stat = os.lstat(path)
    except FileNotFoundError:
        return None
    return stat.st_dev, stat.st_mode, stat.st_size, stat.st_mtime_ns  # its number may change with the spelling, see Files


def _spelling(path: Path) -> str:
    """One text for all spellings of a path that some file systems take for one; a link keeps its own name."""
    folder = os.path.realpath(Path(path).parent)
    return unicodedata.normalize("NFC", os.path.join(folder, Path(path).name)).casefold()


def _flush(path: Path) -> None:
    """The bytes on the disk, before a name says that they are there."""
    with contextlib.suppress(OSError), open(path, "rb+") as file:
        os.fsync(file.fileno())


def _publish(temporary: Path, path: Path, hint: str) -> None:
    """Give the file its name if nobody else has taken it meanwhile."""
    try:
        publish(temporary, path)
    except FileExistsError:
        raise InputError(f"{path}: a file has appeared there meanwhile; {hint}") from None
