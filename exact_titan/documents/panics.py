"""Panics of the tokenizers library. The library is written in Rust, and a broken tokenizer.json makes it panic."""

import contextlib
import os
import sys
from collections.abc import Iterator


def is_of_library(error: BaseException) -> bool:
    """Return whether an error may come from the tokenizers library.

    A panic is a BaseException, so that Python programs end. The library raises other errors as the bare class
    Exception.
    """
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def reason(error: BaseException) -> str:
    """Return the first line of an error, or its class if it has no text."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextlib.contextmanager
def unreported() -> Iterator[None]:
    """Drop the report of a panic, which the library writes to standard error.

    Everything that the process writes to standard error in the context is dropped. No other thread may run.
    """
    sys.stderr.flush()
    try:
        stderr = os.dup(2)
    except OSError:  # standard error is closed
        yield
        return
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nothing)
