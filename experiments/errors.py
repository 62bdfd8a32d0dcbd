"""The one kind of error that a user can cause, shown as a single line."""


class UserError(Exception):
    """A mistake in the request or in a file: printed as one line, exit code 2."""
