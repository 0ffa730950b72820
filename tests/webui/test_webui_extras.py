"""The script in the Extras tab, driven by a runner: what the host may do to it, and what it must never do to the host."""

from __future__ import annotations

import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image
from webui_fakes import LANDMARKS, ROOT, SCRIPT, Component, info, photo, sharp_and_poor, toy_parts

from lafr_core.errors import CheckpointError
from lafr_core.pipeline import REFERENCE_WEIGHT
from lafr_core.settings import RestoreSettings
from lafr_core.types import Face
from lafr_webui import extras


def autocast_on():
    """Whether a product of float32 matrices is cast down here; torch 2.3 and newer ask the question differently."""
    return (torch.ones(1, 1) @ torch.ones(1, 1)).dtype != torch.float32


def changed(before, after):
    return (np.asarray(before.convert("RGB")) != np.asarray(after.convert("RGB"))).any(-1)


def test_one_script_is_registered_between_upscale_and_gfpgan(webui):
    (script,) = webui.load()
    assert script.name == "LAFR"
    assert 1000 < script.order < 2000


def test_ui_names_every_setting(webui):
    from lafr_webui.settings import options

    runner = webui.runner()
    runner.create_args_for_run({})
    script = next(script for script in runner.scripts if script.name == "LAFR")
    assert set(script.controls) == {"enable", "reference", *options()}
    assert next(iter(script.controls)) == "enable" and script.controls["enable"].value is False


def test_widget_values_are_the_defaults(webui):
    from lafr_webui import extras
    from lafr_webui.settings import options

    webui.load()
    controls = extras.ui()
    assert {name: controls[name].value for name in options()} == {name: default for name, (_, default) in options().items()}
    assert controls["fidelity"].kwargs["minimum"] == 0.0 and controls["steps"].kwargs["maximum"] == 50


def test_a_panel_that_cannot_be_drawn_leaves_the_tab_alive(webui, monkeypatch, parts):
    def broken(*args, **kwargs):
        raise RuntimeError("no sliders today")

    runner = webui.runner()
    monkeypatch.setattr(sys.modules["gradio"], "Slider", broken, raising=False)
    pp = webui.run(photo(), {"enable": True}, runner)
    script = next(script for script in runner.scripts if script.name == "LAFR")
    assert script.controls == {} and any("no sliders today" in text for text in webui.shown)
    assert pp.info == {}


def test_the_api_passes_none_for_everything_and_that_is_off(webui, parts):
    image = photo()
    runner = webui.runner()
    args = runner.create_args_for_run({"Upscale": {"upscaling_resize": 2}})
    assert set(args) == {None}
    pp = webui.PostprocessedImage(image)
    runner.run(pp, args)
    assert pp.image is image and pp.info == {} and parts.opened == []


def test_enabled_with_none_for_the_rest_uses_the_defaults(webui, parts):
    image = photo()
    pp = webui.run(image, {"enable": True})
    assert info(pp).status == "ok" and info(pp).found == 1 and info(pp).request.changed() == {}
    difference = changed(image, pp.image)
    assert difference[20:84, 8:72].any()
    assert not difference[:, 150:].any()
    assert image.tobytes() == photo().tobytes(), "the input must stay as it is: Upscale keeps it in its cache"


def test_untouched_pixels_are_bit_identical(webui, parts):
    noise = np.random.default_rng(0).integers(0, 200, (120, 400, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    image.putpixel((8, 20), (255, 0, 0))
    pp = webui.run(image, {"enable": True})
    difference = changed(image, pp.image)
    assert difference.any() and not difference[:, 200:].any()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA"])
def test_mode_size_and_alpha_are_kept(webui, parts, monkeypatch, mode):
    image = photo(mode=mode)
    face = Face((8.0, 20.0, 72.0, 84.0), tuple((x + 8, y + 20) for x, y in LANDMARKS), 0.9)
    monkeypatch.setattr(type(parts.parts.detector), "__call__", lambda self, image, threshold: [face])
    pp = webui.run(image, {"enable": True})
    assert (pp.image.mode, pp.image.size) == (mode, image.size)
    assert changed(image, pp.image).any()
    if mode.endswith("A"):
        assert pp.image.getchannel("A").tobytes() == image.getchannel("A").tobytes()


def test_no_face_passes_the_very_picture_through(webui, parts):
    image = photo(faces=0)
    pp = webui.run(image, {"enable": True})
    assert pp.image is image and info(pp).status == "no face"


def test_the_picture_keeps_its_8_bits_until_a_face_is_cut_out(webui, parts, monkeypatch):
    """Float pixels of a whole photo are twelve bytes a pixel; what comes out is what the library makes of float pixels."""
    from lafr_core.images import photos
    from lafr_core.pipeline import restore_faces
    from lafr_webui import restorer

    given, plain = [], restorer.restore_stored
    monkeypatch.setattr(restorer, "restore_stored", lambda image, *a, **k: given.append(image) or plain(image, *a, **k))
    image = photo(faces=2)
    pp = webui.run(image, {"enable": True})
    assert [pixels.dtype for pixels in given] == [torch.uint8]
    expected = restore_faces(photos.from_pil(image).pixels[None], parts.parts, RestoreSettings()).images[0]
    got = photos.from_pil(pp.image).pixels
    assert (got - expected).abs().max() <= 1.01 / 510  # half a level: rounding


def test_more_pixels_than_the_limit_are_refused_before_they_are_copied(webui, parts, monkeypatch):
    from lafr_core.images import photos

    image = photo((160, 120))
    monkeypatch.setattr(photos, "MAX_PIXELS", 160 * 120)
    assert info(webui.run(image, {"enable": True})).status == "ok"
    monkeypatch.setattr(photos, "MAX_PIXELS", 160 * 120 - 1)
    monkeypatch.setattr(type(image), "copy", lambda self: pytest.fail("copied"))
    pp = webui.run(image, {"enable": True})
    assert pp.image is image and info(pp).status == "failed"
    assert info(pp).note == "picture: 160x120 pixels, at most 0 megapixels can be taken; scale it down or split it"


def test_strength_0_opens_no_model(webui, parts):
    image = photo()
    pp = webui.run(image, {"enable": True, "strength": 0})
    assert pp.image is image and parts.opened == [] and info(pp).request.restore.strength == 0


def test_exif_orientation_does_not_turn_the_picture(webui, parts):
    """A1111 hands the picture on unturned with its EXIF; turning it here would turn it twice in every viewer."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = photo()
    image.info["exif"] = exif.tobytes()
    pp = webui.run(image, {"enable": True})
    assert pp.image.size == image.size and changed(image, pp.image)[20:84, 8:72].any()
    assert pp.image.info["exif"] == image.info["exif"]


@pytest.mark.parametrize(
    ("error", "note", "shown"),
    [
        (CheckpointError("vae.safetensors: expected a LAFR vae file"), "vae.safetensors: expected a LAFR vae file", False),
        (RuntimeError("something, nobody: foresaw"), "RuntimeError something, nobody: foresaw", True),
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), "out of GPU memory; lower 'Faces at a time'", False),
    ],
)
def test_an_exception_fails_one_picture_and_no_more(webui, parts, monkeypatch, error, note, shown):
    from lafr_webui import engine

    def fail(*args, **kwargs):
        raise error

    class After(webui.modules.scripts_postprocessing.ScriptPostprocessing):
        name, order = "After", 5000

        def ui(self):
            return {}

        def process(self, pp):
            pp.info["After"] = "ran"

    runner = webui.runner(After)
    monkeypatch.setattr(engine, "open_models", fail)
    image = photo()
    pp = webui.run(image, {"enable": True}, runner)
    assert pp.image is image and pp.info["After"] == "ran"
    assert (info(pp).status, info(pp).note) == ("failed", note)
    assert bool(webui.shown) is shown


def test_a_setting_out_of_bounds_fails_one_picture_and_no_more(webui, parts):
    image = photo()
    pp = webui.run(image, {"enable": True, "faces": "one and two"})
    assert pp.image is image and info(pp).status == "failed" and "faces: expected numbers" in info(pp).note


@pytest.mark.parametrize("button", ["interrupted", "skipped"])
def test_stopping_is_seen_between_faces(webui, parts, monkeypatch, button):
    runner = webui.runner()
    vae = parts.parts.vae
    plain = vae.decode

    def press(latents):
        setattr(webui.shared.state, button, True)
        return plain(latents)

    monkeypatch.setattr(vae, "decode", press)
    image = photo(faces=2)
    pp = webui.run(image, {"enable": True, "batch_size": 1}, runner)
    assert pp.image is image and info(pp).status == "stopped"
    assert vae.encoded == 1, "the second face was begun after the button"


def test_stop_after_this_image_lets_the_picture_finish(webui, parts):
    webui.shared.state.stopping_generation = True
    assert info(webui.run(photo(), {"enable": True})).status == "ok"


def test_interrupted_before_it_begins(webui, parts):
    webui.shared.state.interrupted = True
    image = photo()
    pp = webui.run(image, {"enable": True})
    assert pp.image is image and parts.opened == [] and info(pp).status == "stopped"


def test_progress_is_shown_and_the_hosts_text_comes_back(webui, parts, monkeypatch):
    seen = []
    state = webui.shared.state
    plain = type(state).__setattr__

    def watch(self, name, value):
        if name == "textinfo":
            seen.append(value)
        plain(self, name, value)

    monkeypatch.setattr(type(state), "__setattr__", watch)
    webui.run(photo(faces=2), {"enable": True, "batch_size": 1})
    assert "LAFR restore 1/2" in seen and "LAFR restore 2/2" in seen
    assert (state.textinfo, state.sampling_step, state.sampling_steps) == ("host text", 3, 20)


def test_an_old_host_lacks_what_newer_ones_have(webui, parts, monkeypatch):
    """No InputAccordion, no info lines in gradio, no get_device_for, a bare state, a bare PostprocessedImage."""

    class Old(Component):
        def __init__(self, *args, **kwargs):
            if "info" in kwargs:
                raise TypeError("__init__() got an unexpected keyword argument 'info'")
            super().__init__(*args, **kwargs)

    runner = webui.runner()
    for name in ("Slider", "Dropdown", "Checkbox", "Textbox", "Number"):
        monkeypatch.setattr(sys.modules["gradio"], name, type(name, (Old,), {}), raising=False)
    monkeypatch.delattr(webui.ui_components, "InputAccordion")
    monkeypatch.delattr(webui.devices, "get_device_for")
    monkeypatch.setattr(webui.shared, "state", types.SimpleNamespace(skipped=False, job=None))
    monkeypatch.setattr(
        webui.shared, "opts", types.SimpleNamespace(**{k: [] for k in vars(webui.shared.opts) if k.startswith("post")})
    )
    pp = webui.run(photo(), {"enable": True}, runner)
    script = next(script for script in runner.scripts if script.name == "LAFR")
    assert script.controls["enable"].label == "Enable" and script.controls["fidelity"].value == RestoreSettings().fidelity
    assert info(pp).status == "ok"


def test_inside_generation_the_models_are_still_ordinary(webui, parts, monkeypatch):
    """As part of txt2img the script runs under inference mode and autocast; both must stop at our door."""
    from lafr_webui import engine

    made = []

    def open_models(settings, **_):
        made.append(toy_parts())
        return made[-1]

    runner = webui.runner()
    monkeypatch.setattr(engine, "open_models", open_models)
    seen = []
    plain = type(toy_parts().vae).decode
    monkeypatch.setattr(type(toy_parts().vae), "decode", lambda self, z: seen.append(autocast_on()) or plain(self, z))
    outside = webui.run(photo(), {"enable": True}, runner)
    engine.CACHE.clear()
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        inside = webui.run(photo(), {"enable": True}, runner)
        helped = webui.run(photo(), {"enable": True, "reference": photo()}, runner)
    assert inside.image.tobytes() == outside.image.tobytes() and not any(seen)
    assert not made[1].vae.gain.is_inference()
    assert info(helped).status == "ok", info(helped).note


def test_models_are_loaded_once_and_given_back_when_asked(webui, parts):
    runner = webui.runner()
    webui.run(photo(), {"enable": True}, runner)
    webui.run(photo(), {"enable": True, "fidelity": 0.2}, runner)
    assert len(parts.opened) == 1
    webui.run(photo(), {"enable": True, "detector": "starter"}, runner)
    assert len(parts.opened) == 2
    webui.shared.opts.face_restoration_unload = True
    webui.run(photo(), {"enable": True, "detector": "starter"}, runner)
    webui.run(photo(), {"enable": True, "detector": "starter"}, runner)
    assert len(parts.opened) == 3


@pytest.mark.parametrize(
    "values",
    [
        {"fidelity": 0.1},
        {"strength": 0.4},
        {"faces": "1"},
        {"top_k": 1},
        {"threshold": 0.88},
        {"mask": "square"},
        {"feather": 0.4},
        {"color": 0.0},
        {"max_face": 10},
        {"min_face": 500},
    ],
)
def test_knobs_of_the_panel_change_the_picture(webui, parts, values):
    runner = webui.runner()
    base = {"enable": True, "color": 0.5}
    assert (
        webui.run(photo(faces=2), base, runner).image.tobytes()
        != webui.run(photo(faces=2), base | values, runner).image.tobytes()
    )


def test_reference_photo_changes_the_picture_and_needs_a_face(webui, parts):
    runner = webui.runner()
    sharp, poor = sharp_and_poor()

    def run(**values):
        return webui.run(poor, {"enable": True, **values}, runner)

    alone, lent = run(), run(reference=sharp)
    assert info(lent).status == "ok" and lent.image.tobytes() != alone.image.tobytes()
    assert len(info(lent).likeness) == 1 and info(alone).likeness == ()
    image = photo()
    missed = webui.run(image, {"enable": True, "reference": photo(faces=0)}, runner)
    assert missed.image is image and "reference photo: no face found" in info(missed).note


def test_a_reference_photo_alone_works_at_the_measured_weight(webui, parts):
    """The panel's untouched slider, the API's absent value and the host's None are the same weight, and more lends more."""
    runner = webui.runner()
    sharp, poor = sharp_and_poor()

    def run(**values):
        return webui.run(poor, {"enable": True, "reference": sharp, **values}, runner)

    assert panel_default("identity") == REFERENCE_WEIGHT
    untouched = run().image.tobytes()
    assert untouched == run(identity=None).image.tobytes() == run(identity=REFERENCE_WEIGHT).image.tobytes()
    assert untouched != run(identity=0.25).image.tobytes()
    off = run(identity=0.0)
    assert off.image.tobytes() == webui.run(poor, {"enable": True}, runner).image.tobytes()
    assert info(off).note == "reference photo not used (reference weight 0)"
    # at weight 0 the photo is not even looked at
    assert info(webui.run(photo(), {"enable": True, "identity": 0.0, "reference": photo(faces=0)}, runner)).status == "ok"


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_without_a_reference_photo_the_identity_weight_changes_nothing(webui, parts, weight):
    runner = webui.runner()
    plain = webui.run(photo(), {"enable": True}, runner)
    weighed = webui.run(photo(), {"enable": True, "identity": weight}, runner)
    assert weighed.image.tobytes() == plain.image.tobytes() and info(weighed).note == info(plain).note == ""


def test_a_reference_photo_of_nobody_here_is_said(webui, parts, monkeypatch):
    from lafr_core.faces import people

    monkeypatch.setattr(people, "LIKELY", 2.0)
    runner = webui.runner()
    image = photo(faces=2)  # a lone face is taken for the person
    pp = webui.run(image, {"enable": True, "reference": sharp_and_poor()[0]}, runner)
    assert info(pp).note == "reference photo not used (no face here looks like that person)"
    assert pp.image.tobytes() == webui.run(image, {"enable": True}, runner).image.tobytes()


def panel_default(name):
    return extras.ui()[name].value


def test_unlike_faces_are_warned_about(webui, parts):
    note = info(webui.run(photo(), {"enable": True, "identity_warning": 1.0})).note
    assert "give a reference photo of the person, raise fidelity, or leave this face out" in note
    assert info(webui.run(photo(), {"enable": True, "identity_warning": -1.0})).note == ""


def test_loading_works_when_the_host_takes_the_folder_off_sys_path(tmp_path):
    """A1111 keeps the extension's folder on sys.path only while it loads the script; later imports must not need it."""
    program = f"""
import importlib.util, sys
sys.path = [p for p in sys.path if p not in ("", {str(ROOT)!r})]
sys.path.insert(0, {str(ROOT / "tests" / "webui")!r})
sys.path.insert(0, {str(ROOT)!r})
from webui_fakes import Webui, photo, toy_parts
class Patch:
    def setitem(self, d, k, v): d[k] = v
    def delitem(self, d, k): del d[k]
webui = Webui(Patch(), False)
(script,) = webui.load()
sys.path.remove({str(ROOT)!r})
from lafr_webui import engine
engine.open_models = lambda settings, **_: toy_parts()
instance = script()
instance.ui()
webui.callbacks["ui_settings"][0]()
pp = webui.PostprocessedImage(photo())
instance.process(pp, enable=True, reference=photo())
print(pp.info["LAFR"], webui.shown)
assert "1 face restored" in pp.info["LAFR"] and not webui.shown
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_scripts_folder_holds_one_file():
    assert [path.name for path in SCRIPT.parent.glob("*.py")] == ["lafr_extras.py"]
