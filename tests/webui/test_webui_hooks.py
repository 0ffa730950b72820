"""What LAFR adds besides its panel: "Restore faces", the settings page and the API route."""

from __future__ import annotations

import base64
import io
import types

import numpy as np
import pytest
from PIL import Image
from webui_fakes import photo, sharp_and_poor

from lafr_webui.infotext import parse
from lafr_webui.settings import options


def base64_png(image):
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


class GFPGAN:
    def name(self):
        return "GFPGAN"


# Restore faces


def test_registered_once_whatever_is_reloaded(webui):
    webui.shared.face_restorers.append(GFPGAN())
    for _ in range(3):
        webui.load()
    assert [entry.name() for entry in webui.shared.face_restorers] == ["GFPGAN", "LAFR"]


def test_restores_an_array_with_the_settings_page(webui, parts):
    webui.load()
    restorer = webui.shared.face_restorers[-1]
    array = np.asarray(photo())
    out = restorer.restore(array)
    assert out.shape == array.shape and out.dtype == np.uint8 and (out != array).any()
    webui.shared.opts.data["lafr_fidelity"] = 0.0
    assert (restorer.restore(array) != out).any()
    webui.shared.opts.data["lafr_strength"] = 0
    assert restorer.restore(array) is array


def test_generation_goes_on_when_it_fails(webui, parts, monkeypatch):
    from lafr_webui import engine

    def fail(*args, **kwargs):
        raise RuntimeError("broken weights")

    webui.load()
    monkeypatch.setattr(engine, "open_models", fail)
    array = np.asarray(photo())
    assert webui.shared.face_restorers[-1].restore(array) is array
    assert any("broken weights" in text for text in webui.shown)


def test_settings_that_no_longer_fit_become_the_defaults(webui, parts, caplog):
    from lafr_webui import options as page
    from lafr_webui.settings import Request

    webui.load()
    webui.shared.opts.data["lafr_fidelity"] = 7
    assert page.request() == Request() and "fidelity: expected 0.0 to 1.0, got 7" in caplog.text


# Settings page


def test_the_page_holds_every_setting_with_its_default(webui):
    webui.load()
    (add,) = webui.callbacks["ui_settings"]
    add()
    labels = webui.shared.opts.data_labels
    without = ("identity", "steadiness", "best_frames")  # "Restore faces" has no reference photo and no batch
    shown = {name: known for name, known in options().items() if name not in without}
    assert set(labels) == {"lafr_download", *(f"lafr_{name}" for name in shown)}
    for name, (option, default) in shown.items():
        info = labels[f"lafr_{name}"]
        assert info.default == default and info.section == ("lafr", "LAFR") and info.label == f"{option.label}: {option.help}"
        assert "info" not in info.component_args


def test_a_page_that_fails_does_not_stop_the_start(webui, monkeypatch):
    webui.load()
    monkeypatch.setattr(webui.shared.opts, "add_option", None)
    webui.callbacks["ui_settings"][0]()
    assert any("settings page" in text for text in webui.shown)


# API


@pytest.fixture
def client(webui, parts, monkeypatch):
    """FastAPI's own client on an app with our route; ``decode_base64_to_image`` raises what the host's raises."""
    fastapi = pytest.importorskip("fastapi", reason="fastapi (requirements-dev.txt) is not installed")
    from fastapi.testclient import TestClient

    def decode(text):
        if text.startswith("http"):
            raise fastapi.HTTPException(500, "Requests not allowed")
        try:
            return Image.open(io.BytesIO(base64.b64decode(text)))
        except Exception as error:
            raise fastapi.HTTPException(500, "Invalid encoded image") from error

    api = webui._put("api")
    api.__path__ = []
    api.api = webui._put("api.api", decode_base64_to_image=decode)

    def build(**cmd_opts):
        vars(webui.shared.cmd_opts).update(cmd_opts)
        webui.load()
        app = fastapi.FastAPI()
        webui.callbacks["app_started"][-1](None, app)
        return TestClient(app)

    return build


def test_route_restores_and_reports(client, webui, parts):
    image = photo(mode="RGBA")
    answer = client().post("/lafr/restore", json={"image": base64_png(image), "settings": {"fidelity": 0.2, "steps": 2.0}})
    assert answer.status_code == 200, answer.text
    body = answer.json()
    restored = Image.open(io.BytesIO(base64.b64decode(body["image"])))
    assert (restored.mode, restored.size) == ("RGBA", image.size) and restored.tobytes() != image.tobytes()
    assert body["status"] == "ok" and parse(body["info"]).request.restore.fidelity == 0.2
    (face,) = body["faces"]
    assert face["box"] == [8.0, 20.0, 72.0, 84.0] and -1 <= face["change"] <= 1
    assert webui.shared.state.log == ["begin lafr", "end"]


def test_route_waits_its_turn(client, webui, parts, monkeypatch):
    from lafr_webui import api

    plain, held = api.restorer.restore, []
    monkeypatch.setattr(api.restorer, "restore", lambda *a: held.append(webui.call_queue.queue_lock.locked()) or plain(*a))
    client().post("/lafr/restore", json={"image": base64_png(photo())})
    assert held == [True] and not webui.call_queue.queue_lock.locked()


def test_route_takes_a_reference_photo(client, parts):
    image, here = photo(), client()
    other = base64_png(Image.effect_noise((160, 120), 90).convert("RGB"))
    answer = here.post("/lafr/restore", json={"image": base64_png(image), "reference": other})
    assert answer.status_code == 422 and "reference photo: no face found" in answer.json()["detail"]
    sharp, poor = (base64_png(picture) for picture in sharp_and_poor())
    alone = here.post("/lafr/restore", json={"image": poor}).json()
    lent = here.post("/lafr/restore", json={"image": poor, "reference": sharp}).json()
    assert lent["image"] != alone["image"] and alone["faces"][0]["likeness"] is None
    assert -1 <= lent["faces"][0]["likeness"] <= 1


@pytest.mark.parametrize(
    ("payload", "status", "detail"),
    [
        ({}, 422, "image: expected a picture as base64 text, got NoneType"),
        ({"image": 3}, 422, "got int"),
        ({"image": ""}, 422, "expected a picture as base64 text"),
        ({"image": "http://10.0.0.1/x.png"}, 422, "Requests not allowed"),
        ({"image": "bm90IGFuIGltYWdl"}, 422, "Invalid encoded image"),
        ({"image": base64_png(photo())[:400]}, 422, "damaged or cut short"),
        ({"image": base64_png(photo()), "settings": {"fidelty": 1}}, 422, "did you mean 'fidelity'"),
        ({"image": base64_png(photo()), "settings": {"fidelity": 2}}, 422, "fidelity: expected 0.0 to 1.0, got 2"),
        ({"image": base64_png(photo()), "settings": [1]}, 422, "settings: expected an object"),
        ({"image": base64_png(photo()), "picture": "x"}, 422, "unknown field 'picture'"),
        ({"image": base64_png(photo()), "settings": {"steadiness": 0.5}}, 422, "steadiness: is for frames of a clip"),
    ],
)
def test_route_refuses_bad_input_by_name(client, parts, payload, status, detail):
    answer = client().post("/lafr/restore", json=payload)
    assert answer.status_code == status and detail in answer.json()["detail"]
    assert parts.opened == []


def test_route_is_there_only_with_the_hosts_own_api(client):
    assert client(api=False).post("/lafr/restore", json={}).status_code == 404


def test_route_asks_for_the_hosts_password(client):
    here = client(api_auth="ann:pa:ss,bob:word")
    payload = {"image": base64_png(photo(faces=0))}
    assert here.post("/lafr/restore", json=payload).status_code == 401
    assert here.post("/lafr/restore", json=payload, auth=("ann", "wrong")).status_code == 401
    assert here.post("/lafr/restore", json=payload, auth=("ann", "pa:ss")).status_code == 200


def test_a_host_without_fastapi_still_starts(webui, monkeypatch):
    webui.load()
    webui.callbacks["app_started"][0](None, types.SimpleNamespace())
    assert any("API route" in text for text in webui.shown)


@pytest.mark.parametrize("field", ["image", "reference"])
@pytest.mark.parametrize("text", ["data:image/png;base64", "data:image/png", "data:,"])
def test_route_calls_a_broken_data_address_the_callers(client, parts, webui, field, text):
    here = client()

    def decode(encoding):  # as A1111 and Forge do
        if encoding.startswith("data:image/"):
            encoding = encoding.split(";")[1].split(",")[1]
        return Image.open(io.BytesIO(base64.b64decode(encoding)))

    webui.modules.api.api.decode_base64_to_image = decode
    answer = here.post("/lafr/restore", json={"image": base64_png(photo()), field: text})
    assert answer.status_code == 422 and f"{field}: cannot be read" in answer.json()["detail"]


def test_route_says_that_it_was_stopped(client, webui, parts, monkeypatch):
    vae, here = parts.parts.vae, client()
    plain = vae.decode
    monkeypatch.setattr(vae, "decode", lambda z: setattr(webui.shared.state, "interrupted", True) or plain(z))
    answer = here.post("/lafr/restore", json={"image": base64_png(photo())})
    assert answer.status_code == 409 and answer.json()["detail"].startswith("stopped")


@pytest.mark.parametrize(("error", "status"), [("InputError", 422), ("CheckpointError", 500), ("MissingPackageError", 500)])
def test_route_says_whose_mistake_it_was(client, parts, monkeypatch, error, status):
    from lafr_core import errors
    from lafr_webui import restorer

    def fail(*args, **kwargs):
        raise getattr(errors, error)("images: too many pixels")

    monkeypatch.setattr(restorer, "restore_stored", fail)
    answer = client().post("/lafr/restore", json={"image": base64_png(photo())})
    assert (answer.status_code, answer.json()["detail"]) == (status, "images: too many pixels")


def test_route_refuses_too_many_pixels(client, parts, monkeypatch):
    from lafr_core.images import photos

    monkeypatch.setattr(photos, "MAX_PIXELS", 100)
    answer = client().post("/lafr/restore", json={"image": base64_png(photo())})
    assert answer.status_code == 422 and "160x120 pixels, at most" in answer.json()["detail"]


def test_work_nobody_waits_for_is_stopped(monkeypatch):
    import asyncio
    import time

    pytest.importorskip("starlette", reason="starlette (requirements-dev.txt) is not installed")
    from lafr_core.errors import Cancelled
    from lafr_webui import api, host

    monkeypatch.setitem(__import__("sys").modules, "modules", types.SimpleNamespace(shared=types.SimpleNamespace(state=None)))
    told = []

    async def receive():
        """The rest of a body, then a client that goes; nested in a task, as middleware waits."""
        await asyncio.ensure_future(asyncio.sleep(0.02))
        told.append({"type": "http.disconnect" if told else "http.request"})
        return told[-1]

    async def stays():
        await asyncio.sleep(60)

    async def fails():
        raise RuntimeError("unexpected message")

    def work():
        for _ in range(100):
            host.poll()
            time.sleep(0.01)
        return "done"

    with pytest.raises(Cancelled, match="client has gone"):
        asyncio.run(api.while_connected(work, lambda: api.disconnected(receive)))
    assert [message["type"] for message in told] == ["http.request", "http.disconnect"]
    for gone in (stays, fails):
        assert asyncio.run(api.while_connected(work, gone)) == "done"
    host.poll()  # other threads are not stopped


def test_a_job_shows_as_one_picture(webui):
    """The webuis' progress route divides by the number of pictures, which ``begin`` leaves at -1."""
    webui.load()
    from lafr_webui import host

    webui.shared.state.job_count = -1
    with host.job():
        assert webui.shared.state.job_count == 1
