"""The exception for errors that the user can fix, and the messages of other exceptions that are not bugs."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from botocore.exceptions import BotoCoreError

STORE_ERRORS = (OSError, BotoCoreError)
"""What file systems and S3 raise when they cannot be reached, read or written."""
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class UserError(Exception):
    """A wrong key, value, file or row in the user's input. The message is one line that names it."""


def one_line(error: BaseException) -> str:
    """The message of a library's exception as one line of at most 300 characters, without terminal colours."""
    return " ".join(_COLOUR.sub("", str(error)).split())[:300] or type(error).__name__


@contextmanager
def as_user_error(message: str, kinds: tuple[type[Exception], ...] = STORE_ERRORS) -> Iterator[None]:
    """Turns exceptions of the block into a `UserError`: ``message`` and, in brackets, what they say.

    Args:
        message: One line that names the key, file or row.
        kinds: The types of the exceptions.
    """
    try:
        yield
    except kinds as error:
        raise UserError(f"{message} ({one_line(error)})") from None


@contextmanager
def prefixed(prefix: str) -> Iterator[None]:
    """Puts ``prefix``, such as ``teacher=``, before the message of a `UserError` that the block raises."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{prefix}{error}") from None


_LASTING = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR),
    *(errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP),
}
# Some libraries quote the system's error in a message of their own.
_FULL = ("no space left on device", "disk quota exceeded")


def is_lasting(error: BaseException) -> bool:
    """Whether the error is one of files that remains until it is fixed: no such file, no permission, no space."""
    lasts = isinstance(error, OSError) and (
        error.errno in _LASTING or isinstance(error, FileNotFoundError | PermissionError)
    )
    return lasts or any(phrase in str(error).lower() for phrase in _FULL)


def explained(error: BaseException) -> tuple[int, str] | None:
    """The exit status and the message of an error; None if the error is a bug.

    The status is 2 if the user can fix the error, else 1.
    """
    if isinstance(error, UserError):
        return 2, " ".join(str(error).splitlines())
    if is_lasting(error):
        return 2, _file_error(error)
    if isinstance(error, OSError | BotoCoreError | MemoryError):
        return 1, _file_error(error) if isinstance(error, OSError) else f"{type(error).__name__}: {one_line(error)}"
    return None


def _file_error(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror.lower()}"
    return one_line(error)
