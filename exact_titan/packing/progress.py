"""The progress of packing. Every task, on any machine, writes its counts to a file. One process shows the sum."""

import json
import os
import socket
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from threading import Event, Thread

from tqdm import tqdm

SECONDS = 2.0
"""Time between two lines in a log."""

REFRESH_SECONDS = 0.5
"""Time between two updates of a task's file, and of the moving line on a terminal."""


@dataclass
class ProgressCounts:
    """Numbers of documents, tokens, bytes of text, and bytes of the corpus on the disk that have been read."""

    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0
    read: float = 0.0


class Tally:
    """The counts of one process, in a separate file of the shared folder.

    Args:
        folder: the folder that all processes share.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / f"{socket.gethostname()}.{os.getpid()}.{token_hex(4)}"
        self._written = 0.0
        self._counts = ProgressCounts()
        self._before = 0.0

    def add(self, documents: int, tokens: int, text_bytes: int, read: float) -> None:
        """Count a batch. ``read`` is the number of the part's bytes that have been read so far."""
        self._counts.documents += documents
        self._counts.tokens += tokens
        self._counts.text_bytes += text_bytes
        self._counts.read = self._before + read
        if time.monotonic() - self._written > REFRESH_SECONDS:
            self.flush()

    def finish_part(self, size: int) -> None:
        """Count all bytes of a finished part, also if some bytes were not read."""
        self._before += size
        self._counts.read = self._before
        self.flush()

    def flush(self) -> None:
        """Write the counts to the file."""
        self._written = time.monotonic()
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps(vars(self._counts)), encoding="utf-8")
        new.replace(self._file)


def read_tallies(folder: Path) -> ProgressCounts:
    """Return the sum of the counts of all processes."""
    total: Counter[str] = Counter()
    for file in folder.iterdir():
        if file.suffix != ".new":
            total.update(json.loads(file.read_text(encoding="utf-8")))
    return ProgressCounts(**total)


class Progress:
    """Shows documents, tokens, tokens/s and the time left on stderr.

    A terminal shows one moving line. A log gets a new line every 2 s.

    Args:
        folder: folder of the tallies.
        total: total number of bytes to read.
        before: counts of the parts that earlier runs have finished.
    """

    def __init__(self, folder: Path, total: int, before: ProgressCounts) -> None:
        self._folder, self._total, self._before = folder, total, before
        self._begin = self._shown = time.monotonic()
        self._bar: tqdm | None = None
        if sys.stderr.isatty():
            layout = "packing: {percentage:3.0f}%|{bar}| {desc}"
            self._bar = tqdm(total=total, file=sys.stderr, bar_format=layout)
        self._stop = Event()
        self._thread = Thread(target=self._watch, name="progress", daemon=True)

    def __enter__(self) -> "Progress":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._bar is not None:
            self._show()
            self._bar.close()

    def _watch(self) -> None:
        while not self._stop.wait(REFRESH_SECONDS):
            if self._bar is not None or time.monotonic() - self._shown >= SECONDS:
                self._show()

    def _show(self) -> None:
        self._shown = time.monotonic()
        counts = read_tallies(self._folder)
        if not counts.documents and self._bar is None:
            return  # files are still being opened, or an error stops the packing at the start
        seconds = self._shown - self._begin
        read = min(self._before.read + counts.read, self._total)
        left = "?" if not counts.read else clock(seconds * (self._total - read) / counts.read)
        documents, tokens = self._before.documents + counts.documents, self._before.tokens + counts.tokens
        text = f"{documents:,} documents, {tokens:,} tokens, {counts.tokens / seconds:,.0f} tokens/s, {left} left"
        if self._bar is not None:
            self._bar.n = read
            self._bar.set_description_str(text)
        else:
            share = 100 * read / self._total if self._total else 100
            print(f"packing: {share:3.0f} %, {text}", file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """Format a time as ``H:MM:SS``, or as ``M:SS`` below an hour."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
