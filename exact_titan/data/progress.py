"""Progress of packing on the terminal, or as plain lines in a log."""

import sys
import time

from tqdm import tqdm

SECONDS = 2.0


class Progress:
    """Documents, tokens, tokens/s and MB of text so far, on stderr: a moving line on a terminal, else one every 2 s."""

    def __init__(self) -> None:
        self._begin = self._shown = time.monotonic()
        self._documents = self._tokens = self._bytes = 0
        self._bar = tqdm(unit=" documents", file=sys.stderr) if sys.stderr.isatty() else None

    def add(self, documents: int, tokens: int, text_bytes: int) -> None:
        """Count what a batch has brought."""
        self._documents += documents
        self._tokens += tokens
        self._bytes += text_bytes
        now = time.monotonic()
        rate = f"{self._tokens / (now - self._begin):,.0f} tokens/s"
        if self._bar is not None:
            self._bar.update(documents)
            self._bar.set_postfix_str(f"{self._tokens:,} tokens, {rate}, {self._bytes / 1e6:,.1f} MB", refresh=False)
        elif now - self._shown >= SECONDS:
            self._shown = now
            counts = f"{self._documents:,} documents, {self._tokens:,} tokens"
            print(f"packing: {counts}, {rate}, {self._bytes / 1e6:,.1f} MB", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the terminal's line."""
        if self._bar is not None:
            self._bar.close()
