"""SHA-256 of large files, in parallel."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_BLOCK = 16 * 2**20


def sha256_of(folder: Path, names: Sequence[str]) -> Iterator[tuple[str, str | OSError]]:
    """Yield the name and the SHA-256 in hexadecimal digits of files in ``folder``, in the order of ``names``.

    One thread a core reads the files. A file that cannot be read gives the error instead of the SHA-256.
    """

    def one(name: str) -> str | OSError:
        digest, block = hashlib.sha256(), bytearray(_BLOCK)
        try:
            with (folder / name).open("rb", buffering=0) as data:
                while count := data.readinto(block):
                    digest.update(memoryview(block)[:count])
        except OSError as error:
            return error
        return digest.hexdigest()

    threads = max(1, min(len(names), len(os.sched_getaffinity(0))))
    pool = ThreadPoolExecutor(threads, "sha256")
    try:
        yield from zip(names, pool.map(one, names), strict=True)
    finally:
        # Ctrl-C ends the command after the files that are being read.
        pool.shutdown(cancel_futures=True)
