"""Every error LAFR raises on purpose. A message says what was expected, what came, and the next step."""


class LafrError(Exception):
    """Base class: catching it catches everything LAFR raises on purpose, and nothing else."""


class InputError(LafrError, ValueError):
    """A tensor, image or argument of the wrong shape, range or kind."""


class ImageFileError(LafrError):
    """A file that cannot be read as an image (missing, empty, truncated, not an image, too large)."""


class ClipError(LafrError):
    """A clip that cannot be read or written (missing, damaged, without pictures, of a kind that is not opened)."""


class SettingsError(LafrError, ValueError):
    """An unknown setting, or one outside its bounds."""


class CheckpointError(LafrError):
    """A weight file that is missing, damaged, of another kind or of another latent family."""


class MissingPackageError(LafrError, ImportError):
    """An optional package (facexlib, insightface, diffusers) is asked for but not installed."""


class DownloadError(LafrError):
    """A download that failed or whose sha256 does not match; the message carries the manual address."""


class Cancelled(LafrError):
    """The caller's progress callback asked to stop."""
