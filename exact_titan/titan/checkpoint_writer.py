"""PyTorch's writer of distributed checkpoints, which also computes the SHA-256 of every file and writes the manifest.

1. Every rank computes the SHA-256 of its own files while it writes them. A second thread computes the SHA-256 of a
   large block during the write of the block.
2. The results of the write carry each rank's digests to the coordinating rank.
3. The coordinating rank writes the metadata, ``run.json`` and the manifest.

All of this happens where PyTorch writes: in the background of an asynchronous save.
"""

import concurrent.futures
import hashlib
import io
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType, AsyncSaveResponse
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future
from torchtitan.components.checkpointer.dcp import AsyncMode

from exact_titan.runs.checkpoint_manifest import write_manifest
from exact_titan.runs.checkpoint_reader import DCP_METADATA
from exact_titan.runs.run_record import RunRecord

_LARGE = 2**20
"""Blocks of this many bytes and more go to a second thread. Below, the handover costs more than the digest."""


@dataclass(frozen=True)
class _HashedResult(WriteResult):
    """The result of a write of one tensor, and the SHA-256 by name of the files of the same rank."""

    sha256: dict[str, str]


class CheckpointWriter(FileSystemWriter):
    """Writes a distributed checkpoint with its manifest.

    Args:
        folder: the folder to write into.
        name: the folder's final path, for the metadata.
        record: the identity of the run. None: the checkpoint gets no ``run.json``.
    """

    def __init__(self, folder: Path, *, name: Path, record: RunRecord | None) -> None:
        super().__init__(folder)
        self.fs = self._hashing = _HashingFileSystem()
        self._name, self._record = name, record

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's files."""
        results = super().write_data(plan, planner).wait()
        if results:
            first = results[0]
            results[0] = _HashedResult(first.index, first.size_in_bytes, first.storage_data, self._hashing.sha256)
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write the metadata, ``run.json`` and the manifest. Only the coordinating rank calls this method."""
        super().finish(metadata, results)
        if self._record is not None:
            self._record.write(Path(self.path))
        sha256 = {DCP_METADATA: self._hashing.sha256[f"{DCP_METADATA}.tmp"]}
        for first in (one for rank in results for one in rank[:1]):
            if isinstance(first, _HashedResult):
                sha256 |= first.sha256
        write_manifest(Path(self.path), sha256)

    def storage_meta(self) -> StorageMeta:
        """Return the name and the identity of the save for the metadata."""
        return StorageMeta(checkpoint_id=self._name, save_id=self.save_id)


def save_with(
    writer: CheckpointWriter,
    state_dict: dict[str, Any],
    mode: AsyncMode,
    *,
    group: dist.ProcessGroup | None,
    stager: DefaultStager | None,
) -> concurrent.futures.Future | AsyncSaveResponse | None:
    """Save states as torchtitan does, with a writer that also writes the manifest.

    Args:
        writer: the writer.
        state_dict: the states.
        mode: torchtitan's mode.
        group: the processes of an asynchronous save.
        stager: torchtitan's stager, for the mode with pinned memory.

    Returns:
        The asynchronous save. None after a save that is not asynchronous.
    """
    if mode == AsyncMode.DISABLED:
        dcp.save(state_dict, storage_writer=writer)
        return None
    if mode == AsyncMode.ASYNC_WITH_PINNED_MEM:
        return dcp.async_save(
            state_dict,
            storage_writer=writer,
            process_group=group,
            async_checkpointer_type=AsyncCheckpointerType.PROCESS,
            async_stager=stager,
        )
    # Without a stager, PyTorch would stage with the writer. PyTorch closes no stager that it is given.
    own_stager = DefaultStager(StagingOptions(False, False, False, False))
    try:
        saving = dcp.async_save(state_dict, storage_writer=writer, process_group=group, async_stager=own_stager)
    except BaseException:
        own_stager.close()
        raise
    assert isinstance(saving, concurrent.futures.Future)
    saving.add_done_callback(lambda _: own_stager.close())
    return saving


class _HashingFileSystem(FileSystem):
    """PyTorch's file system, with the SHA-256 of every file that it has written, by name."""

    def __init__(self) -> None:
        self.sha256: dict[str, str] = {}

    @contextmanager
    def create_stream(self, path: str | os.PathLike, mode: str) -> Iterator[io.IOBase]:
        if mode != "wb":
            with super().create_stream(path, mode) as stream:
                yield stream
            return
        with _HashingFile(Path(path)) as stream:
            yield stream
        self.sha256[Path(path).name] = stream.sha256()


class _HashingFile(io.BufferedWriter):
    """A new file with the SHA-256 of its bytes. The bytes must be written in order."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "wb"))
        self._digest = hashlib.sha256()
        self._thread = ThreadPoolExecutor(1, "sha256")

    def write(self, data: Any) -> int:
        if memoryview(data).nbytes < _LARGE:
            self._digest.update(data)
            return super().write(data)
        hashed = self._thread.submit(self._digest.update, data)
        try:
            return super().write(data)
        finally:
            hashed.result()

    def close(self) -> None:
        self._thread.shutdown()
        super().close()

    def sha256(self) -> str:
        return self._digest.hexdigest()
