"""The errors a user may see: each message one line that names the thing and the legal values."""

from __future__ import annotations


class OmnisparseError(Exception):
    """A failure the user can act on; the command line prints it as one line and exits.

    Attributes:
        exit_code: What the command line exits with.
        on_every_process: Of several processes of one training, all meet this failure alike, so
            that the first speaks for them.
    """

    exit_code = 1
    on_every_process = False


class UsageError(ValueError):
    """A value that is wrong whatever it is for, such as a size that is no size: exit code 2."""

    exit_code = 2


class FormatError(OmnisparseError):
    """A file that is not what it says it is: artifact, checkpoint or nested file."""


class DataError(OmnisparseError):
    """A corpus, manifest or recording that cannot be used."""
