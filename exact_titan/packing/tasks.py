"""Pack the parts of a job in one process. Workers of this machine and tasks of a cluster use this module."""

import pickle
from dataclasses import dataclass
from pathlib import Path

from exact_titan.documents.sources import Source
from exact_titan.documents.token_file_base import TokenFile
from exact_titan.documents.tokenizer import DocumentTokenizer
from exact_titan.errors import InputError
from exact_titan.packing.corpus import NO_LIMIT, Limit
from exact_titan.packing.failures import cause_of, part_name
from exact_titan.packing.part import pack_part
from exact_titan.packing.part_result import PartResult
from exact_titan.packing.parts import PackOptions, Part
from exact_titan.packing.progress import Tally
from exact_titan.packing.selection import FinishedParts
from exact_titan.packing.work_folder import WorkFolder


@dataclass(frozen=True)
class PackingJob:
    """The input of the tasks of one executor run. The file ``job.pickle`` holds the job.

    Attributes:
        parts: the parts to pack.
        opened: the opened sources, by index.
        limits: the limits of the sources, by index. A source without an entry has no limit.
        all_parts: all parts of the corpus, in their order.
    """

    parts: list[Part]
    opened: dict[int, Source | TokenFile]
    limits: dict[int, Limit]
    all_parts: list[Part]

    def limit(self, part: Part) -> Limit:
        """Return the limit of the part's source."""
        return self.limits.get(part.source, NO_LIMIT)

    def name(self, part: Part) -> str:
        """Return the name of the part for messages."""
        return part_name(part, self.opened, len(self.all_parts))

    def write(self, file: Path) -> None:
        """Write the job to a file."""
        file.write_bytes(pickle.dumps(self))

    @classmethod
    def read(cls, file: Path) -> "PackingJob":
        """Read a job that this command, or the command that made the task, has written."""
        job = pickle.loads(file.read_bytes())
        assert isinstance(job, cls)
        return job


class PartPacker:
    """Packs parts of a job in this process, one after another.

    Args:
        job: the job.
        work: the work folder.
        threads: number of the tokenizer's threads.

    Raises:
        InputError: if the tokenizer has changed since the job began.
    """

    def __init__(self, job: PackingJob, work: WorkFolder, threads: int) -> None:
        self._job, self._work, self._threads = job, work, threads
        self._tally = Tally(work.tallies)
        self._finished = FinishedParts(job.all_parts, work.parts)
        self._tokenizer = _tokenizer(job.all_parts[0].options)

    def pack(self, part: Part) -> PartResult | None:
        """Pack a part. Return None, and do nothing, if earlier parts reach the source's limit.

        Raises:
            InputError: if a file cannot be read or written, memory or threads run out, or a library panics.
        """
        if self._finished.are_enough(part, self._job.limit(part)):
            return None
        try:
            pack_part(
                part, self._job.opened, self._tokenizer, self._work.parts, workers=self._threads, tally=self._tally
            )
        except BaseException as error:
            if (cause := cause_of(error)) is not None:
                raise InputError(f"{self._job.name(part)}: {cause}") from error
            if isinstance(error, Exception) and not isinstance(error, InputError):
                error.add_note(f"exact_titan packed {self._job.name(part)}")
            raise
        self._tally.finish_part(part.bytes)
        result = self._finished.result(part)
        assert result is not None
        return result


def _tokenizer(options: PackOptions) -> DocumentTokenizer:
    tokenizer = DocumentTokenizer(Path(options.tokenizer), options.eos_token, options.special_tokens)
    if tokenizer.record.sha256 != options.tokenizer_sha256:
        raise InputError(f"--tokenizer {options.tokenizer} has changed since packing began: start again")
    return tokenizer
