"""The exception for wrong input, and its line on the screen. The message is for the user."""

import sys


class InputError(ValueError):
    """A file, a key or a value from the user is wrong.

    The message is one line. The message names the file, key or value, and says what to do. Command line entry points
    print the message without a traceback and exit with code 2. Entry points catch no other exception, so a bug in this
    package shows its traceback.
    """


def print_error(program: str, error: InputError | str) -> None:
    """Print ``PROGRAM: error: MESSAGE`` on standard error, as one line."""
    print(f"{program}: error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
