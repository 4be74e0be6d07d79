"""The one exception that means "the user can mend this": jobs print it as a single line and exit with status 2."""


class UserError(Exception):
    """A wrong key, value, file or row in what the user gave. The message is one line that names it."""
