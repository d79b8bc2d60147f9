"""The frame around every command: what reaches the terminal, what an error prints, and the exit code."""

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from exact_titan.errors import InputError, print_error
from exact_titan.system.exits import dropped_exits_repeated
from exact_titan.system.file_errors import as_input_errors
from exact_titan.system.terminal import STANDARD_OUTPUT, give_up_output, guarded

INPUT_ERROR = 2
_ENDING = (signal.SIGTERM, signal.SIGHUP)


def run(program: str, command: Callable[[], int | None]) -> int:
    """Run a command and return its exit code.

    - Wrong input and errors about files are one line on standard error, with exit code 2.
    - SIGINT, SIGTERM and SIGHUP end the command by an exception, so that the command removes its unfinished files. The
      exit codes are 130, 143 and 129. A command that stops in another way handles the signals itself.
    - A closed pipe (``| head``) ends the command without a message, with exit code 141, as a shell reports SIGPIPE.
    - Any other exception is a bug, and shows its traceback.
    """
    with guarded():
        try:
            with as_input_errors(), dropped_exits_repeated(), _ended_by_signals(program):
                try:
                    code = command() or 0
                except SystemExit:  # the parser exits after --help
                    _flush()
                    raise
                _flush()
            return code
        except KeyboardInterrupt:
            print(f"{program}: interrupted", file=sys.stderr)
            return 128 + signal.SIGINT
        except InputError as error:
            cause = error.__cause__
            if isinstance(cause, OSError) and cause.filename == STANDARD_OUTPUT:
                give_up_output()
                if isinstance(cause, BrokenPipeError):
                    return 128 + signal.SIGPIPE
            print_error(program, error)
            return INPUT_ERROR


def _flush() -> None:
    if sys.stdout is not None:
        sys.stdout.flush()


@contextlib.contextmanager
def _ended_by_signals(program: str) -> Iterator[None]:
    """Raise SystemExit at SIGTERM and SIGHUP. The clean-up after a first signal is not interrupted by a second."""

    ended = False

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal ended
        ended = True
        for one in handled:
            signal.signal(one, signal.SIG_IGN)
        print(f"{program}: ended by {signal.Signals(number).name}", file=sys.stderr, flush=True)
        sys.exit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # nohup ignores SIGHUP.
    handled = {number: found for number in _ENDING if (found := signal.getsignal(number)) != signal.SIG_IGN}
    for number in handled:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, former in handled.items():
            # A run ignores signals until its process ends, after the ranks have agreed on their end.
            if ended or signal.getsignal(number) is end:
                signal.signal(number, former)
