"""Name a part that failed and the cause in one line: a killed worker, memory that ran out, a library that panicked."""

import errno
import signal
from collections.abc import Mapping

from exact_titan.documents.sources import Source
from exact_titan.documents.token_file_base import TokenFile
from exact_titan.packing.parts import Part, Piece

LESS_MEMORY = "use fewer --workers, or a machine with more memory"
_AGAIN = "run the same command again"
_CAUSES = {
    signal.SIGKILL: f"often the kernel's out-of-memory killer: {LESS_MEMORY}",
    signal.SIGBUS: f"a file became shorter while the worker read the file, or a disk failed: {_AGAIN}",
    signal.SIGTERM: f"another program ended the worker: {_AGAIN}",
    signal.SIGHUP: f"another program ended the worker: {_AGAIN}",
}


def part_name(part: Part, opened: Mapping[int, Source | TokenFile], total: int) -> str:
    """Return the name of a part for messages: ``part 3 of 48, corpus/03.jsonl``.

    A part of several files has the first file, the last file and the number of files. A range of a token file has the
    numbers of the documents, from 0.

    Args:
        part: the part.
        opened: the opened sources, by index.
        total: number of the corpus's parts.
    """
    names = [_piece_name(piece, opened[piece.source]) for piece in part.pieces]
    files = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]} ({len(names)} files)"
    return f"part {part.number + 1} of {total}, {files}"


def _piece_name(piece: Piece, source: Source | TokenFile) -> str:
    if isinstance(source, TokenFile):
        return f"{source.path}, documents {piece.first:,} to {piece.last - 1:,}"
    assert piece.file is not None
    return source.shown(piece.file)


def killed(exit_code: int | None, part: str | None) -> str:
    """Return the message about a worker process that ended before its work was done.

    Args:
        exit_code: as :attr:`multiprocessing.Process.exitcode`. None if the exit code is not known.
        part: name of the part in work. None if the worker had no part yet.
    """
    work = f"while it packed {part}" if part else "before it packed a part"
    number = -exit_code if exit_code is not None and exit_code < 0 else (exit_code or 0) - 128
    try:
        ended = signal.Signals(number)
    except ValueError:
        how = "ended" if exit_code is None else f"ended with exit code {exit_code}"
        return f"a worker {how} {work}: {_AGAIN}"
    cause = _CAUSES.get(ended, f"a library failed, or memory ran out: {_AGAIN}, with fewer --workers")
    return f"a worker was ended by {ended.name} {work}: {cause}"


def cause_of(error: BaseException) -> str | None:
    """Return cause and way out if memory, threads or a library failed. Return None for all other errors.

    A reader may have converted the error to an :class:`InputError` about its file: the cause of an error counts, too.
    """
    if isinstance(error.__cause__, BaseException) and (cause := cause_of(error.__cause__)) is not None:
        return cause
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return f"memory ran out{_details(error)}: {LESS_MEMORY}"
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return f"no further thread can start{_details(error)}: use fewer --workers, or raise the limit (ulimit -u)"
    # The class of a panic in Rust code cannot be imported. The class is no Exception.
    if type(error).__name__ == "PanicException":
        return f"a library panicked{_details(error)}: leave out the document that the library cannot process"
    return None


def _details(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f" ({text[:200]})" if text else ""
