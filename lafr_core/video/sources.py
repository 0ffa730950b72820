"""What a path holds, opened as a clip, and the target that fits it: a film, an animated picture, a folder of frames."""

from __future__ import annotations

from pathlib import Path

from .clips import FileClip
from .encode import Film
from .folder import Folder, FolderClip
from .pictures import Animation, AnimationClip, is_animation
from .settings import ClipSettings
from .target import Source, Target


def open_clip(path: Path) -> Source:
    """The clip at ``path``, to look at. Raises ClipError, path and one sentence, for what is none."""
    if path.is_dir():
        return FolderClip(path)
    return AnimationClip(path) if is_animation(path) else FileClip(path)


def open_source(path: Path, how: ClipSettings) -> tuple[Source, Target]:
    """The clip at ``path`` and where its result goes. Raises ClipError, path and one sentence, for what is none."""
    if path.is_dir():
        folder = FolderClip(path)
        return folder, Folder(folder)
    if is_animation(path):
        pictures = AnimationClip(path)
        return pictures, Animation(pictures, how)
    film = FileClip(path, deinterlace=how.deinterlace)
    return film, Film.settle(film, how)
