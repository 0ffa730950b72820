"""Two hundred pictures in a row, as the Extras tab's batch modes send them."""

from __future__ import annotations

import contextlib
import gc
import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from webui_fakes import info, photo

from lafr_core import heap


def cut_short():
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (120, 160, 3), dtype=np.uint8)).save(stream, "PNG")
    return Image.open(io.BytesIO(stream.getvalue()[:2000]))  # opens; fails when its pixels are wanted


def run_batch(webui, images, values):
    """What ``run_postprocessing`` does around the runner: one picture after the other, left out where ``skipped`` was set."""
    runner, state, out = webui.runner(), webui.shared.state, []
    args = runner.create_args_for_run({"LAFR": values})
    for image in images:
        state.skipped = False
        pp = webui.PostprocessedImage(image)
        runner.run(pp, args)
        if state.skipped:
            continue
        stream = io.BytesIO()
        pp.image.save(stream, "PNG")  # raises for a picture that is cut short
        out.append((stream.getvalue(), info(pp)))
    return out


def test_200_pictures_in_order_with_flat_memory(webui, parts):
    process, used = psutil.Process(), []

    def pictures():
        for index in range(200):
            if index % 20 == 0:
                gc.collect()
                used.append(process.memory_info().rss)
            yield photo((320, 240), level=30 + index // 2) if index % 10 else photo((320, 240), faces=0, level=30 + index // 2)

    out = run_batch(webui, pictures(), {"enable": True})
    assert len(out) == 200 and len(parts.opened) == 1
    for index, (data, report) in enumerate(out):
        level = Image.open(io.BytesIO(data)).getpixel((319, 0))[0]
        assert level == 30 + index // 2, "the order changed"
        assert report.found == (1 if index % 10 else 0)
    kept = sum(len(data) for data, _ in out[40:180])  # by this test itself: most of what grows
    growth = (used[-1] - used[2] - kept) / 2**20  # the first pictures warm caches up
    assert growth < 20, f"{growth:.0f} MiB more after 140 pictures beside {kept >> 20} of results: {[u >> 20 for u in used]}"


def test_one_corrupt_picture_does_not_stop_the_batch(webui, parts, caplog):
    out = run_batch(webui, [photo(level=50), cut_short(), photo(level=70)], {"enable": True})
    assert [Image.open(io.BytesIO(data)).getpixel((159, 0))[0] for data, _ in out] == [50, 70]
    assert all(report.status == "ok" for _, report in out)
    assert "damaged or cut short" in caplog.text


def test_interrupt_stops_the_work_of_the_whole_batch(webui, parts):
    def pictures():
        for index in range(6):
            if index == 2:
                webui.shared.state.interrupted = True
            yield photo()

    out = run_batch(webui, pictures(), {"enable": True})
    assert [report.status for _, report in out] == ["ok", "ok", "stopped", "stopped", "stopped", "stopped"]
    assert parts.parts.vae.encoded == 2


def test_freed_memory_goes_back_to_the_system_whatever_thread_restored(webui, parts):
    """glibc keeps freed buffers in the arena of the thread that used them: without a trim every new thread holds on to some."""
    webui.load()
    if heap._malloc_trim() is None:
        pytest.skip("no malloc_trim in this C library")
    plain, process, used, pins = parts.parts.vae.decode, psutil.Process(), [], []

    def greedy(latents):
        pieces = [torch.ones(8000) for _ in range(2000)]  # 64 MB in pieces that no allocator maps one by one
        pins.append(pieces[-1])  # what lives on top keeps what was freed below it
        return plain(latents)

    parts.parts.vae.decode = greedy
    runner = webui.runner()
    with contextlib.ExitStack() as alive:  # an arena is only used again when its thread has ended
        for _ in range(5):
            pool = alive.enter_context(ThreadPoolExecutor(1))
            assert info(pool.submit(webui.run, photo(), {"enable": True}, runner).result()).status == "ok"
            used.append(process.memory_info().rss / 2**20)
    assert used[-1] - used[0] < 64, [round(value) for value in used]
