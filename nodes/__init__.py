"""The ComfyUI edge: each node is a schema and a few lines around ``lafr_core``."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .align import AlignLatent
from .clip import RestoreClip
from .compare import Compare
from .faces import DetectFaces
from .folder import LoadFolder
from .guidance import IdentityGuidance
from .load import LoadAdapter, LoadStarter, register_folder
from .paste import FacePaste
from .restore import RestoreFaces
from .sample import IdentitySampler
from .samples import SamplePhoto
from .score import IdentityScore
from .video import RestoreVideo

NODES: list[type[io.ComfyNode]] = [
    DetectFaces,
    AlignLatent,
    IdentitySampler,
    FacePaste,
    LoadAdapter,
    LoadStarter,
    IdentityGuidance,
    RestoreFaces,
    IdentityScore,
    LoadFolder,
    SamplePhoto,
    Compare,
    RestoreClip,
    RestoreVideo,
]
"""Every node of the pack. Their ids are part of saved workflows: they never change, and inputs are only ever appended."""


class LafrExtension(ComfyExtension):  # type: ignore[misc]
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        register_folder()
        return NODES
