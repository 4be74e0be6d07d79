"""The one exception that means "the user can mend this": jobs print it as a single line and exit with status 2."""

import re

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class UserError(Exception):
    """A wrong key, value, file or row in what the user gave. The message is one line that names it."""


def one_line(error: BaseException) -> str:
    """What a library's exception says, as one uncoloured line of at most 300 characters."""
    return " ".join(_COLOUR.sub("", str(error)).split())[:300] or type(error).__name__
