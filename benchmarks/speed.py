"""How fast, and in how much memory? Every ratio is measured side by side in one run, so it holds on any machine.

    python benchmarks/speed.py [--only paste,vae,one-face,adapter,clip] [--pairs 3] [--threads 2] [--json out.json]

paste     20 faces into a 24-megapixel photo, against facexlib's FaceRestoreHelper.paste_faces_to_input_image on the same
          inputs. The helper's constructor would download a detector and a parser, so it is bypassed (object.__new__) and
          the attributes that the method reads are set by hand: upscale_factor 1, use_parse False.
vae       encode and decode one 512 crop: the starter VAE against TAESD's architecture (diffusers AutoencoderTiny; weights
          do not matter for time).
one-face  one face in a one-megapixel photo, end to end in a fresh process after imports: seconds and peak memory.
adapter   the adapter's share of the VAE encode before it: starter VAE, TAESD, and Stable Diffusion's AutoencoderKL.
clip      a clip of 1280x720 with one face, all that LAFR does with a frame (looking, following, cleaning, restoring, steadying,
          pasting) against what facexlib's helper does around a restoring network, as GFPGAN calls it frame by frame: RetinaFace
          on ResNet-50, alignment, ParseNet, pasting with its mask. The restoring network itself is left out of theirs, not of
          ours. facexlib's networks have random weights (time does not depend on them); landmarks are given.

Two contestants take turns; the figure is the median over pairs of CPU time (all cores of this process), because wall time on
a shared machine measures the neighbours; wall time stands beside it. What cannot run says why.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lafr_core.faces.crop import place
from lafr_core.faces.paste import paste_faces
from lafr_core.geometry import FFHQ_TEMPLATE, invert, transform
from lafr_core.latent.adapter import Adapter, open_adapter
from lafr_core.latent.networks.adapter import AdapterNet
from lafr_core.latent.networks.vae import StarterVaeNet
from lafr_core.latent.spec import family
from lafr_core.settings import RestoreSettings
from lafr_core.store import assets, checkpoint
from lafr_core.types import Face, Matrix

SEED = 7
PHOTO = (4000, 6000)
FACES = 20


@dataclass(frozen=True)
class Row:
    """One printed line: a figure, its bar, and whether it is met (None = no bar, or not measured)."""

    name: str
    figure: str
    bar: str = ""
    met: bool | None = None


class Spent(NamedTuple):
    """What a job took."""

    wall: float
    cpu: float
    """Seconds of this process on all its cores: what other processes on the machine do not distort."""


class Turns(NamedTuple):
    """Medians over pairs of runs of two contestants, one after the other."""

    first: Spent
    second: Spent
    ratio: Spent
    """First over second."""


def taking_turns(first: Callable[[], Any], second: Callable[[], Any], pairs: int) -> Turns:
    """Run both ``pairs`` times in turn, after one unmeasured call of the second."""
    second()
    turns = [(_spent(first), _spent(second)) for _ in range(pairs)]
    return Turns(
        _median([a for a, _ in turns]),
        _median([b for _, b in turns]),
        _median([Spent(a.wall / b.wall, a.cpu / b.cpu) for a, b in turns]),
    )


def _median(spent: list[Spent]) -> Spent:
    return Spent(statistics.median(s.wall for s in spent), statistics.median(s.cpu for s in spent))


def _spent(job: Callable[[], Any]) -> Spent:
    wall, cpu = time.perf_counter(), time.process_time()
    job()
    return Spent(time.perf_counter() - wall, time.process_time() - cpu)


def paste_rows(pairs: int) -> list[Row]:
    if importlib.util.find_spec("facexlib") is None:
        return [Row("paste", "not measured: facexlib is not installed")]
    photo, faces, crops = crowd()
    settings = RestoreSettings(mask="square")  # what facexlib pastes
    images = _to_tensor(photo)
    restored = torch.cat([_to_tensor(crop) for crop in crops])

    def ours() -> Tensor:
        return paste_faces(images, faces, restored, settings)[0]

    def ours_from_bytes() -> NDArray[np.uint8]:
        pasted, _ = paste_faces(_to_tensor(photo), faces, torch.cat([_to_tensor(crop) for crop in crops]), settings)
        return _to_bytes(pasted)

    theirs = facexlib_paste(photo, faces, crops)
    slow, fast, ratio = taking_turns(theirs, ours, pairs)
    converted = _median([_spent(ours_from_bytes) for _ in range(pairs)])
    figure = f"{ratio.cpu:.0f}x less CPU time: facexlib {slow.cpu:.1f} s, LAFR {fast.cpu:.2f} s; {_wall(slow, fast)}"
    return [
        Row("paste 20 faces into 24 MP", figure, ">= 50x", ratio.cpu >= 50),
        Row("  with 8 bit -> float -> 8 bit of the photo", f"{slow.cpu / converted.cpu:.0f}x less: LAFR {converted.cpu:.2f} s"),
    ]


def crowd() -> tuple[NDArray[np.uint8], list[Face], list[NDArray[np.uint8]]]:
    """A 24-megapixel photo, 20 faces of 120 to 480 pixels at all angles in it, and their restored crops (all RGB bytes)."""
    generator = np.random.default_rng(SEED)
    photo = generator.integers(0, 256, (*PHOTO, 3), dtype=np.uint8)
    faces = []
    for number in range(FACES):
        size, angle = generator.uniform(120, 480), generator.uniform(-0.6, 0.6)
        centre = np.array([number % 5 + 0.5, number // 5 + 0.5]) / (5, 4) * PHOTO[::-1]
        c, s = np.cos(angle) * size / 512, np.sin(angle) * size / 512
        points = (np.asarray(FFHQ_TEMPLATE) - 256) @ np.array([[c, s], [-s, c]]) + centre
        (x0, y0), (x1, y1) = points.min(0), points.max(0)
        landmarks: Any = tuple((float(x), float(y)) for x, y in points)
        faces.append(place(Face((float(x0), float(y0), float(x1), float(y1)), landmarks, 1.0)))
    crops = [generator.integers(0, 256, (512, 512, 3), dtype=np.uint8) for _ in faces]
    return photo, faces, crops


def facexlib_paste(
    photo: NDArray[np.uint8], faces: list[Face], crops: list[NDArray[np.uint8]]
) -> Callable[[], NDArray[np.uint8]]:
    """facexlib's own method on the same photo, matrices and crops (BGR, as it expects)."""
    from facexlib.utils.face_restoration_helper import FaceRestoreHelper

    def paste() -> NDArray[np.uint8]:
        helper = object.__new__(FaceRestoreHelper)
        helper.upscale_factor = 1
        helper.use_parse = False
        helper.face_size = (512, 512)
        helper.input_img = photo[..., ::-1].copy()
        helper.restored_faces = [crop[..., ::-1].copy() for crop in crops]
        helper.inverse_affine_matrices = [np.asarray(invert(_matrix(face))) for face in faces]
        pasted: NDArray[np.uint8] = helper.paste_faces_to_input_image()
        return pasted

    return paste


def vae_rows(pairs: int) -> list[Row]:
    taesd = _taesd()
    if taesd is None:
        return [Row("vae", "not measured: diffusers is not installed")]
    crop = torch.rand((1, 3, 512, 512), generator=torch.Generator().manual_seed(SEED))
    network, note = _starter_vae()

    def ours() -> Tensor:
        return network.decoder(network.encoder(crop))

    def theirs() -> Tensor:
        return taesd.decoder(taesd.encoder(crop))

    ours()
    fast, slow, ratio = taking_turns(ours, theirs, pairs)
    figure = f"{ratio.cpu:.3f} of TAESD's CPU time: {fast.cpu:.2f} s against {slow.cpu:.2f} s; {_wall(fast, slow)}{note}"
    return [Row("starter VAE, encode + decode 512", figure, "<= 0.25", ratio.cpu <= 0.25)]


def adapter_rows(pairs: int) -> list[Row]:
    crop = torch.rand((1, 3, 512, 512), generator=torch.Generator().manual_seed(SEED))
    latents = torch.randn((1, 4, 64, 64), generator=torch.Generator().manual_seed(SEED))
    adapter, note = _adapter()
    starter, _ = _starter_vae()
    encoders: list[tuple[str, Callable[[], Any] | None]] = [("the starter VAE's", lambda: starter.encoder(crop))]
    taesd, kl = _taesd(), _sd_vae()
    encoders.append(("TAESD's", None if taesd is None else lambda: taesd.encoder(crop)))
    encoders.append(("Stable Diffusion's", None if kl is None else lambda: kl.encode(crop)))
    rows = []
    for name, encode in encoders:
        if encode is None:
            rows.append(Row(f"adapter / {name} encode", "not measured: diffusers is not installed"))
            continue
        adapter(latents, 0.5)
        fast, slow, ratio = taking_turns(lambda: adapter(latents, 0.5), encode, pairs)
        figure = f"{ratio.cpu:.3f} of its CPU time: {1000 * fast.cpu:.0f} ms against {1000 * slow.cpu:.0f} ms{note}"
        # The bar is DESIGN 1.1's, for the VAE that an SD checkpoint brings along.
        bar = ("<= 0.05", ratio.cpu <= 0.05) if name == "Stable Diffusion's" else ("", None)
        rows.append(Row(f"adapter / {name} encode", figure, *bar))
    return rows


CLIP = (720, 1280)
CLIP_FRAMES = 6


def clip_rows(pairs: int) -> list[Row]:
    missing = [name for name in ("facexlib", "cv2") if importlib.util.find_spec(name) is None]
    if missing or not _bundled("prior"):
        return [Row("clip", f"not measured: {', '.join(missing) or 'the starter weights'} not at hand")]
    from lafr_core.models import open_models
    from lafr_core.video.batch import restore_batch
    from lafr_core.video.settings import ClipSettings

    settings = RestoreSettings(detector="starter")
    models, frames = open_models(settings, device="cpu"), clip()
    found: list[int] = []

    def ours() -> None:
        result = restore_batch(frames, models, settings, ClipSettings().steadiness)
        found.append(len(result.faces))

    theirs = facexlib_frame(_to_bytes(frames[:1]))
    turns = [(_spent(ours), _median([_spent(theirs) for _ in range(2)])) for _ in range(pairs)]
    fast = _median([Spent(a.wall / CLIP_FRAMES, a.cpu / CLIP_FRAMES) for a, _ in turns])
    slow = _median([b for _, b in turns])
    ratio = _median([Spent(b.wall / a.wall * CLIP_FRAMES, b.cpu / a.cpu * CLIP_FRAMES) for a, b in turns])
    figure = f"{ratio.cpu:.1f}x less CPU time a frame: facexlib {slow.cpu:.2f} s, LAFR {fast.cpu:.2f} s; {_wall(slow, fast)}"
    faces = f"{found[-1]} faces in {CLIP_FRAMES} frames"
    return [Row("a frame of a clip, 1280x720, one face", f"{figure}; {faces}", ">= 3x", ratio.cpu >= 3)]


def clip() -> Tensor:
    """(T, 3, 720, 1280): the sample portrait, its face some 150 pixels wide, drifting over gray, in grain."""
    from lafr_core.images import photos

    portrait = photos.read(assets.sample("portrait")).pixels[None]
    small = F.interpolate(portrait, size=(560, round(560 * portrait.shape[-1] / portrait.shape[-2])), mode="area")
    generator = torch.Generator().manual_seed(SEED)
    frames = torch.full((CLIP_FRAMES, 3, *CLIP), 0.4)
    for k in range(CLIP_FRAMES):
        frames[k, :, 60 + 2 * k : 620 + 2 * k, 300 + 5 * k : 300 + 5 * k + small.shape[-1]] = small[0]
    return (frames + 0.03 * torch.randn(frames.shape, generator=generator)).clamp(0, 1)


def facexlib_frame(frame: NDArray[np.uint8]) -> Callable[[], None]:
    """What GFPGANer.enhance has facexlib do with one frame (H, W, 3) in which one face is found, its restoring left out."""
    import cv2
    from facexlib.detection.retinaface import RetinaFace
    from facexlib.parsing.parsenet import ParseNet
    from facexlib.utils.face_restoration_helper import FaceRestoreHelper

    image = frame[..., ::-1].copy()
    landmarks = (np.asarray(FFHQ_TEMPLATE) - 256) * 0.4 + (520, 320)

    def work() -> None:
        helper = object.__new__(FaceRestoreHelper)  # the constructor downloads weights
        helper.template_3points, helper.pad_blur, helper.use_parse, helper.upscale_factor = False, False, True, 1
        helper.face_size, helper.face_template, helper.device = (512, 512), np.asarray(FFHQ_TEMPLATE), torch.device("cpu")
        helper.face_det, helper.face_parse = detector, parser
        helper.affine_matrices, helper.inverse_affine_matrices, helper.cropped_faces = [], [], []
        helper.input_img, helper.all_landmarks_5 = image, [landmarks]
        helper.face_det.detect_faces(image, 2.0)  # random weights would find thousands of faces
        helper.align_warp_face()
        helper.get_inverse_affine(None)
        helper.restored_faces = list(helper.cropped_faces)
        pasted = helper.paste_faces_to_input_image()
        assert pasted.shape == image.shape

    detector = RetinaFace(network_name="resnet50", half=False, phase="test").eval()
    detector.device = torch.device("cpu")
    parser = ParseNet(in_size=512, out_size=512, parsing_ch=19).eval()
    assert cv2.__version__
    return work


def one_face_rows(threads: int) -> list[Row]:
    if importlib.util.find_spec("skimage") is None:
        return [Row("one face", "not measured: scikit-image (its astronaut portrait) is not installed")]
    missing = [kind for kind in ("detector", "vae", "adapter", "prior") if not _bundled(kind)]
    if missing:
        return [Row("one face", f"not measured: this checkout has no {', '.join(missing)} weights yet")]
    command = [sys.executable, __file__, "--child", "--threads", str(threads)]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    if child.returncode != 0:
        return [Row("one face", f"failed: {child.stderr.strip().splitlines()[-1:]}")]
    seen = json.loads(child.stdout.splitlines()[-1])
    seconds, peak = seen["open"] + seen["restore"], seen["peak_gb"]
    if seen["faces"] != 1:
        return [Row("one face", f"not measured: expected 1 face in the portrait, the detector found {seen['faces']}")]
    return [
        Row(
            "one face in one megapixel",
            f"{seconds:.2f} s after imports (weights {seen['open']:.2f} s, restore {seen['restore']:.2f} s)",
            "<= 4 s",
            seconds <= 4,
        ),
        Row("  peak memory of the process", f"{peak:.2f} GB", "<= 2 GB", peak <= 2),
    ]


def one_face() -> dict[str, float]:
    """What the child process does: open the starter pack, restore the astronaut portrait at 1000 x 1000, report itself."""
    from skimage.data import astronaut

    from lafr_core.models import open_models
    from lafr_core.pipeline import restore_faces

    photo = F.interpolate(_to_tensor(astronaut()), size=(1000, 1000), mode="bilinear", antialias=True)
    settings = RestoreSettings(detector="starter")
    start = time.perf_counter()
    parts = open_models(settings, device="cpu")
    opened = time.perf_counter()
    restoration = restore_faces(photo, parts, settings)
    done = time.perf_counter()
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    return {
        "open": opened - start,
        "restore": done - opened,
        "peak_gb": kilobytes / 1024**2,
        "faces": len(restoration.faces),
    }


def _starter_vae() -> tuple[StarterVaeNet, str]:
    """The bundled VAE's network, or one of the default size with random weights and a note saying so."""
    if _bundled("vae"):
        stored = checkpoint.load(assets.bundled("vae"), "vae")
        return StarterVaeNet(**stored.config).eval().requires_grad_(False), ""
    return StarterVaeNet().eval().requires_grad_(False), " (default size, random weights: no bundled VAE yet)"


def _adapter() -> tuple[Adapter, str]:
    if _bundled("adapter"):
        return open_adapter(None, torch.device("cpu")), ""
    network = AdapterNet().eval().requires_grad_(False)
    return Adapter(network, family("sd")), " (default size, random weights: no bundled adapter yet)"


def _taesd() -> Any | None:
    if importlib.util.find_spec("diffusers") is None:
        return None
    from diffusers import AutoencoderTiny

    return AutoencoderTiny().eval().requires_grad_(False)


def _sd_vae() -> Any | None:
    """Stable Diffusion's autoencoder, random weights."""
    if importlib.util.find_spec("diffusers") is None:
        return None
    from diffusers import AutoencoderKL

    widths = (128, 256, 512, 512)
    return (
        AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=widths,
            layers_per_block=2,
            latent_channels=4,
        )
        .eval()
        .requires_grad_(False)
    )


def _bundled(kind: str) -> bool:
    return assets.bundled(kind).is_file()


def _matrix(face: Face) -> Matrix:
    assert face.matrix is not None
    # The five landmarks must come out at the template, or the two contestants would not be given the same job.
    assert np.allclose(transform(face.matrix, face.landmarks), FFHQ_TEMPLATE, atol=1e-3)
    return face.matrix


def _wall(first: Spent, second: Spent) -> str:
    return f"wall {first.wall:.2f} s against {second.wall:.2f} s"


def _to_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None].float() / 255


def _to_bytes(images: Tensor) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = (images[0] * 255 + 0.5).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    return pixels


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="paste,vae,one-face,adapter,clip", help="comma-separated rows to measure")
    parser.add_argument("--pairs", type=int, default=3, help="measured turns of each contestant")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads for torch and OpenCV")
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.child:
        print(json.dumps(one_face()))
        return 0
    if importlib.util.find_spec("cv2") is not None:
        import cv2

        cv2.setNumThreads(options.threads)
    measures: dict[str, Callable[[], list[Row]]] = {
        "one-face": lambda: one_face_rows(options.threads),
        "vae": lambda: vae_rows(options.pairs),
        "adapter": lambda: adapter_rows(options.pairs),
        "paste": lambda: paste_rows(options.pairs),
        "clip": lambda: clip_rows(options.pairs),
    }
    wanted = [name.strip() for name in options.only.split(",")]
    unknown = sorted(set(wanted) - set(measures))
    if unknown:
        parser.error(f"--only: expected some of {', '.join(measures)}, got {', '.join(unknown)}")
    rows = []
    for name, measure in measures.items():
        if name not in wanted:
            continue
        with torch.no_grad():
            for row in measure():
                rows.append(row)
                verdict = "" if row.met is None else (" met" if row.met else " NOT MET")
                bar = f"  [bar {row.bar}:{verdict}]" if row.bar else ""
                print(f"{row.name:44s} {row.figure}{bar}", flush=True)
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
