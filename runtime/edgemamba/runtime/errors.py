"""The errors that users are meant to read.

Everything a caller can get wrong (a file, an argument, a missing extra) is raised as an :class:`EdgeMambaError` whose text
is one line that names the thing and the remedy. The command line prints that line on stderr and exits with ``exit_code``;
any other exception is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

import re

# What breaks a line, or commands a terminal: messages quote files that may be hostile.
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


class EdgeMambaError(Exception):
    """Base of all errors meant for the user. ``exit_code`` follows the command line's contract (2: bad usage or input)."""

    exit_code = 2

    def __str__(self) -> str:
        """The message, with control characters as spaces."""
        return _CONTROLS.sub(" ", super().__str__())


class MissingExtraError(EdgeMambaError, ImportError):
    """An optional dependency is not installed; the message names the pip command that installs it."""


class NativeLibraryError(EdgeMambaError):
    """The native library is absent, unloadable or of another ABI version."""


class ScanArgumentError(EdgeMambaError, ValueError):
    """An argument of the selective scan breaks the operator's contract; the message starts with the argument's name."""


class BundleError(EdgeMambaError):
    """A bundle is missing, malformed, changed since it was written, or points outside its folder."""


class EngineError(EdgeMambaError):
    """An inference backend cannot be used here, or failed while running."""


class SourceError(EdgeMambaError):
    """A source cannot be opened, or nothing in it can be read."""


class SinkError(EdgeMambaError):
    """A sink cannot be opened or written."""


class CheckpointError(EdgeMambaError):
    """A checkpoint cannot be read safely, or does not fit the model."""


class DataError(EdgeMambaError):
    """A training data set cannot be used as given."""


class ExportError(EdgeMambaError):
    """A model cannot be exported as asked."""


class ModelError(EdgeMambaError, ValueError):
    """A model is asked for by an unknown name, with an unknown option, or fed an input it is not built for."""


class TrainingError(EdgeMambaError):
    """A training run cannot be started or continued as asked, or diverged."""
