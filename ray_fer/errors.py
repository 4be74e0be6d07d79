"""The one exception that means "the user can mend this", and what jobs print of others that are no bugs."""

import errno
import re

from botocore.exceptions import BotoCoreError

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class UserError(Exception):
    """A wrong key, value, file or row in what the user gave. The message is one line that names it."""


def one_line(error: BaseException) -> str:
    """What a library's exception says, as one uncoloured line of at most 300 characters."""
    return " ".join(_COLOUR.sub("", str(error)).split())[:300] or type(error).__name__


_LASTING = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR),
    *(errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP),
}
# Some libraries put the system's error into a text of their own.
_FULL = ("no space left on device", "disk quota exceeded")


def is_lasting(error: BaseException) -> bool:
    """Whether it is an error of files that lasts until somebody mends it: no such file, no permission, no space."""
    lasts = isinstance(error, OSError) and (
        error.errno in _LASTING or isinstance(error, FileNotFoundError | PermissionError)
    )
    return lasts or any(phrase in str(error).lower() for phrase in _FULL)


def explained(error: BaseException) -> tuple[int, str] | None:
    """The exit status and the line for an error that is no bug: 2 where the user can mend it; None for a bug."""
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
