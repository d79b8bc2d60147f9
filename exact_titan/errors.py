"""The exception for wrong input, its line on the screen, and the hint for a wrong name. Users read the messages."""

import difflib
import sys
from collections.abc import Iterable

from exact_titan.system.terminal import escape


class InputError(ValueError):
    """A file, a key or a value from the user is wrong.

    The message is one line. The message names the file, key or value, and says what to do. Command line entry points
    print the message without a traceback and exit with code 2. Entry points catch no other exception, so a bug in this
    package shows its traceback.
    """


def print_error(program: str, error: InputError | str) -> None:
    """Print ``PROGRAM: error: MESSAGE`` on standard error, as one line."""
    print(f"{program}: error: {escape(' '.join(str(error).split()))}", file=sys.stderr, flush=True)


def did_you_mean(word: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """Return ``"; did you mean …?"`` with the closest known word, or an empty string."""
    by_lower = {one.lower(): one for one in known}
    close = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=cutoff)
    return f"; did you mean {by_lower[close[0]]}?" if close else ""
