"""``POST /lafr/restore``: the panel over HTTP. The webui's own extras routes cannot carry another script's arguments."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from secrets import compare_digest
from typing import Any, TypeVar

from PIL import Image

from lafr_core.errors import ImageFileError, InputError, LafrError, SettingsError
from lafr_core.types import Face

from . import host, restorer
from .infotext import line
from .settings import Request
from .words import sentence

ROUTE = "/lafr/restore"
FIELDS = ("image", "reference", "settings")
CALLERS = (InputError, ImageFileError, SettingsError)
"""Errors that the caller can mend: HTTP 422. All others are ours: 500."""
T = TypeVar("T")


def register(app: Any) -> None:
    """Add the route to the webui's FastAPI ``app``, where ``--api`` or ``--nowebui`` opened the others, behind the same
    ``--api-auth``.
    """
    from modules import shared

    if not (getattr(shared.cmd_opts, "api", False) or getattr(shared.cmd_opts, "nowebui", False)):
        return
    import fastapi
    from fastapi import Body

    async def lafr_restore(request, payload=Body(...)):  # type: ignore[no-untyped-def] # noqa: B008 - FastAPI's way
        return await while_connected(partial(restore, payload), partial(disconnected, request.receive))

    # FastAPI would look the names up in this module, where they are not.
    lafr_restore.__annotations__ = {"request": fastapi.Request, "payload": dict}
    app.add_api_route(ROUTE, lafr_restore, methods=["POST"], dependencies=_authentication(shared.cmd_opts))


async def disconnected(receive: Callable[[], Awaitable[Mapping[str, Any]]]) -> None:
    """Return once the client has gone. ``receive``: the ASGI channel of a request whose body was read.

    Waited for, not asked now and then: Starlette's ``is_disconnected`` never becomes true behind A1111's middleware.
    """
    while (await receive())["type"] != "http.disconnect":
        pass


async def while_connected(work: Callable[[], T], gone: Callable[[], Awaitable[None]]) -> T:
    """What ``work`` gives, done in a thread. Once ``gone`` returns, its next :func:`host.poll` raises Cancelled."""
    from starlette.concurrency import run_in_threadpool

    stop = threading.Event()

    def watched() -> T:
        with host.asked_by(stop.is_set):
            return work()

    task = asyncio.ensure_future(run_in_threadpool(watched))
    watch = asyncio.ensure_future(gone())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if watch.done() and watch.exception() is None:  # a watch that fails has seen nobody go
            stop.set()
        await asyncio.wait({task})
        return task.result()
    finally:
        stop.set()  # the server may cancel us instead; the thread goes on until it looks
        watch.cancel()


def restore(payload: Mapping[str, Any]) -> dict[str, Any]:
    """{"image": base64 or URL, "reference": the same, optional, "settings": {name: value}} -> picture, line and faces.

    The picture is a base64 PNG of the input's size, alpha kept. One restoration at a time, in the webui's own queue. HTTP codes
    say whose mistake it is: 422 for a field, setting, picture or reference photo that the caller can mend, 409 when somebody
    stopped the job, 500 for what is wrong here.
    """
    from fastapi import HTTPException

    unknown = sorted(set(payload) - set(FIELDS))
    if unknown:
        raise HTTPException(422, f"unknown field {unknown[0]!r}; expected {', '.join(FIELDS)}")
    settings = payload.get("settings") or {}
    if not isinstance(settings, Mapping):
        raise HTTPException(422, f"settings: expected an object of names and values, got {type(settings).__name__}")
    try:
        request = Request.from_mapping(settings)
    except SettingsError as error:
        raise HTTPException(422, str(error)) from error
    if request.engine.steadiness:
        raise HTTPException(422, "steadiness: is for frames of a clip in Batch from Directory; this route takes one picture")
    image = _picture(payload, "image")
    reference = _picture(payload, "reference") if payload.get("reference") else None
    with host.job():
        result = restorer.restore(image, request, reference)
    if result.report.status == "failed":
        raise HTTPException(422 if isinstance(result.error, CALLERS) else 500, result.report.note)
    if result.report.status == "stopped":
        raise HTTPException(409, "stopped by Interrupt or Skip before it was done; send the picture again")
    return {
        "image": _png(result.image),
        "status": result.report.status,
        "message": sentence(result.report),
        "info": line(result.report),
        "faces": [_face(face) for face in result.faces],
    }


def _picture(payload: Mapping[str, Any], name: str) -> Image.Image:
    """Decoded by the webui's own function, so its rules hold: no URLs unless allowed, none to local addresses, Pillow's size
    limit.
    """
    from fastapi import HTTPException
    from modules.api.api import decode_base64_to_image

    text = payload.get(name)
    if not isinstance(text, str) or not text:
        raise HTTPException(422, f"{name}: expected a picture as base64 text, got {type(text).__name__}")
    try:
        image = decode_base64_to_image(text)
    except HTTPException as error:  # the webui calls every picture it cannot read its own mistake
        raise HTTPException(422, f"{name}: {error.detail}; expected a base64 picture") from error
    except Exception as error:  # an address that does not answer, a data: address without a comma
        raise HTTPException(422, f"{name}: cannot be read ({type(error).__name__}); expected a base64 picture") from error
    try:
        image.load()  # a picture that is cut short opens, and fails only here
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, LafrError) as error:
        raise HTTPException(422, f"{name}: damaged or cut short ({error})") from error
    return image


def _png(image: Image.Image) -> str:
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return base64.b64encode(stream.getvalue()).decode("ascii")


def _face(face: Face) -> dict[str, Any]:
    return {"box": list(face.box), "score": face.score, "change": face.change, "likeness": face.likeness, "trust": face.trust}


def _authentication(cmd_opts: Any) -> list[Any]:
    """What ``--api-auth`` asks of the webui's own routes; [] without it. Its check is a method of an object we cannot reach."""
    given = getattr(cmd_opts, "api_auth", None)
    if not given:
        return []
    from fastapi import Depends, HTTPException
    from fastapi.security import HTTPBasic

    accounts = dict(pair.split(":", 1) for pair in given.split(","))

    # Without an annotation: FastAPI would look its name up in this module, where it is not.
    def check(credentials=Depends(HTTPBasic())) -> None:  # type: ignore[no-untyped-def] # noqa: B008 - FastAPI's way
        password = accounts.get(credentials.username)
        if password is None or not compare_digest(credentials.password.encode(), password.encode()):
            raise HTTPException(401, "Incorrect username or password", headers={"WWW-Authenticate": "Basic"})

    return [Depends(check)]
