"""What the C library keeps of freed memory."""

from __future__ import annotations

import psutil
import pytest
import torch

from lafr_core import heap


def test_trimming_gives_back_what_lies_below_something_that_lives() -> None:
    if heap._malloc_trim() is None:
        pytest.skip("no malloc_trim in this C library")
    process = psutil.Process()
    pieces = [torch.ones(8000) for _ in range(6000)]  # 192 MB in pieces that no allocator maps one by one
    pin = pieces[-1]
    del pieces
    held = process.memory_info().rss
    heap.trim()
    assert held - process.memory_info().rss > 150 * 10**6 and pin.sum() == 8000


def test_trimmed_work_is_followed_by_a_trim_even_where_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []
    monkeypatch.setattr(heap, "trim", lambda: happened.append("trim"))

    @heap.trimmed()
    def work(fails: bool) -> None:
        happened.append("work")
        if fails:
            raise KeyError

    work(False)
    with pytest.raises(KeyError):
        work(True)
    assert happened == ["work", "trim"] * 2


@pytest.mark.parametrize("library", [object(), TypeError("no name"), OSError("no library")])
def test_a_c_library_without_trim_does_nothing(monkeypatch: pytest.MonkeyPatch, library: object) -> None:
    def open_library(name: None) -> object:
        if isinstance(library, Exception):
            raise library
        return library

    heap._malloc_trim.cache_clear()
    monkeypatch.setattr(heap.ctypes, "CDLL", open_library)
    heap.trim()
    assert heap._malloc_trim() is None
    heap._malloc_trim.cache_clear()
