"""Pictures inside larger files: WebDataset tar shards and Hugging Face's parquet files, read where they lie.

Only the index is read at the start: a tar's headers, a parquet file's row counts. A picture's bytes are read when it is asked
for, so 70,000 faces cost no memory and no unpacking. Parquet needs pyarrow (it comes with Hugging Face's ``datasets``).
"""

from __future__ import annotations

import functools
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lafr_core.errors import InputError, MissingPackageError

CONTAINERS = (".tar", ".parquet")


class Inside(NamedTuple):
    """Where a picture lies in a container: bytes of a tar, or a row of a parquet file's row group."""

    start: int
    """Offset in bytes; for parquet the row group."""
    size: int
    """Length in bytes; for parquet the row in its group."""


def containers(source: Path) -> list[Path]:
    """The containers that a source names: one file, or all of a folder, in order; [] for anything else."""
    if source.is_file():
        return [source] if source.suffix.lower() in CONTAINERS else []
    return sorted(p for p in source.glob("*") if p.suffix.lower() in CONTAINERS and p.is_file())


def inside(path: Path, suffixes: tuple[str, ...]) -> Iterator[tuple[str, Inside]]:
    """(name, place) of every picture in a container. Raises InputError for a damaged file, MissingPackageError."""
    if path.suffix.lower() == ".parquet":
        yield from _parquet_rows(path)
        return
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isfile() and member.name.lower().endswith(suffixes):
                    yield f"{path.name}/{member.name}", Inside(member.offset_data, member.size)
    except (tarfile.TarError, OSError) as error:
        raise InputError(f"{path}: not a readable tar shard ({error}); fetch it again, uncompressed") from error


def read(path: Path, place: Inside) -> bytes:
    """The bytes of one picture. Raises OSError where the container has changed."""
    if path.suffix.lower() == ".parquet":
        column, rows = _group(path, place.start)
        value = rows[place.size]
        data = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(data, bytes):
            raise OSError(f"{path}: row {place.size} of column {column} holds no picture bytes")
        return data
    with path.open("rb") as file:
        file.seek(place.start)
        return file.read(place.size)


def _parquet_rows(path: Path) -> Iterator[tuple[str, Inside]]:
    layout = _parquet().ParquetFile(path).metadata
    for group in range(layout.num_row_groups):
        for row in range(layout.row_group(group).num_rows):
            yield f"{path.name}/{group}.{row}", Inside(group, row)


@functools.lru_cache(maxsize=2)
def _group(path: Path, group: int) -> tuple[str, list[Any]]:
    """The picture column of one row group: ``image`` as ``datasets`` writes it, else the first that holds bytes."""
    file = _parquet().ParquetFile(path)
    names = file.schema_arrow.names
    column = next((name for name in ("image", "jpg", "png", "webp") if name in names), None)
    if column is None:
        raise InputError(f"{path}: expected a column image, got {', '.join(names)}; rename the picture column to image")
    return column, file.read_row_group(group, columns=[column]).column(column).to_pylist()


def _parquet() -> Any:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise MissingPackageError("parquet data need pyarrow; install it with: pip install pyarrow") from error
    return parquet
