"""LAFR as a freshly cloned extension in a whole Forge, in its own environment: its loader, runner, batch loop and API models.

Run by forge_pins.sh, inside the Forge checkout: ``python .../forge_live.py --always-cpu --api``. Prints one line per check.
Without starter weights in the clone, toy networks stand in for them and the output says so.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, os.getcwd())
sys.path.append(str(Path(__file__).parent))

from modules import initialize

initialize.imports()
initialize.initialize()

from modules import postprocessing, scripts, shared  # noqa: E402
from PIL import Image  # noqa: E402

BAD = (161, 121)


def photos(folder: Path) -> dict[str, Image.Image]:
    """What a folder of a user may hold: all the modes, a picture that LAFR will fail on, and a file that is no picture."""
    from webui_fakes import photo

    made = {
        "a.png": photo(),
        "c.png": photo(mode="RGBA"),
        "d.png": photo(faces=0),
        "e.png": photo(mode="L"),
        "b.png": photo(BAD),
    }
    for name, image in made.items():
        image.save(folder / name)
    (folder / "f.png").write_bytes(b"not a picture")
    return made


def main() -> None:
    from lafr_webui import engine, restorer
    from lafr_webui.infotext import parse

    names = [data.script_class.name for data in scripts.postprocessing_scripts_data]
    order = [script.name for script in scripts.scripts_postproc.scripts_in_preferred_order()]
    assert names.count("LAFR") == 1 and order.index("Upscale") < order.index("LAFR") < order.index("GFPGAN"), order
    print("extras scripts in order:", ", ".join(order))
    assert [entry.name() for entry in shared.face_restorers].count("LAFR") == 1
    print("face restorers:", ", ".join(entry.name() for entry in shared.face_restorers))

    weights = Path(engine.__file__).parent.parent / "lafr_core" / "weights"
    kinds = ("detector", "vae", "adapter", "prior")
    toy = not all((weights / f"{kind}.safetensors").is_file() for kind in kinds)
    if toy:
        from webui_fakes import toy_parts

        engine.open_models = lambda settings, **_: toy_parts()
        print("starter weights are not in this clone: toy networks instead")

    plain = restorer.restore_stored

    def restore_stored(images, *args, **kwargs):
        if images.shape[-1] == BAD[0]:
            raise RuntimeError("out of luck")
        return plain(images, *args, **kwargs)

    restorer.restore_stored = restore_stored
    shared.opts.data["use_original_name_batch"] = True
    with tempfile.TemporaryDirectory() as root:
        source, target = Path(root, "in"), Path(root, "out")
        source.mkdir(), target.mkdir()
        made = photos(source)
        # Forge's own API fills these in; Upscale cannot do without
        upscale = {"upscale_enabled": False, "upscale_mode": 0, "upscale_by": 1.0, "max_side_length": 0}
        args = scripts.scripts_postproc.create_args_for_run({"Upscale": upscale, "LAFR": {"enable": True, "fidelity": 0.3}})
        outputs, info, _ = postprocessing.run_postprocessing(2, None, None, str(source), str(target), True, *args)
        saved = {path.name.split("-")[0].removesuffix(".png") + ".png": path for path in sorted(target.rglob("*.png"))}
        assert sorted(saved) == sorted(made), f"expected {sorted(made)}, got {sorted(saved)}"
        expected = {"b.png": "failed", "d.png": "no face"}
        if toy:  # the toy detector looks for red, which e.png lost
            expected |= {"a.png": "ok", "c.png": "ok", "e.png": "no face"}
        for name, path in saved.items():
            image = Image.open(path)
            report = parse(image.info["postprocessing"].split("LAFR: ", 1)[1])
            print(name, image.mode, image.size, report.status, "found", report.found, report.note)
            assert image.size == made[name].size
            assert report.status == expected.get(name, report.status)
        assert Image.open(saved["c.png"]).mode == "RGBA"
        again = scripts.scripts_postproc.create_args_for_run({"Upscale": upscale})
        outputs, info, _ = postprocessing.run_postprocessing(0, made["a.png"], None, "", "", True, *again, save_output=False)
        assert outputs[0].tobytes() == made["a.png"].tobytes() and "LAFR" not in info
        print("every argument None: untouched")
        if not toy:
            check_clip(Path(root, "clip"), target, upscale)
    print("forge_live: all checks passed")


def check_clip(source: Path, target: Path, upscale: dict) -> None:
    """Batch from Directory as a clip: every frame is restored in Forge's own loop, and otherwise than alone."""
    from lafr_core.store import assets
    from lafr_webui.infotext import parse

    source.mkdir()
    portrait = Image.open(assets.sample("portrait")).convert("RGB").resize((240, 240))
    for index in range(6):  # a camera that pans
        portrait.crop((2 * index, 0, 200 + 2 * index, 220)).save(source / f"frame{index}.png")
    restored = {}
    for steadiness in (0.0, 0.7):
        into = target / f"steady{steadiness}"
        into.mkdir()
        args = scripts.scripts_postproc.create_args_for_run(
            {"Upscale": upscale, "LAFR": {"enable": True, "steadiness": steadiness}}
        )
        postprocessing.run_postprocessing(2, None, None, str(source), str(into), True, *args)
        saved = [Image.open(path) for path in sorted(into.rglob("*.png"))]
        reports = [parse(image.info["postprocessing"].split("LAFR: ", 1)[1]) for image in saved]
        print("steadiness", steadiness, [(report.status, report.found, report.note) for report in reports])
        assert [report.status for report in reports] == ["ok"] * 6 and not any("alone" in report.note for report in reports)
        restored[steadiness] = [image.convert("RGB").tobytes() for image in saved]
    assert all(alone != steady for alone, steady in zip(*restored.values(), strict=True))


main()
