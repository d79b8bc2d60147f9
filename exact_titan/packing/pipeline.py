"""The functions :func:`pack` and :func:`append`: run the steps of packing in order (:mod:`exact_titan.packing`)."""

from collections.abc import Sequence
from pathlib import Path

from exact_titan.dataset.manifest import TOKENIZER_FOLDER, Manifest, SftRecord, SourceRecord, SplitRecord
from exact_titan.dataset.manifest_checks import MOST_IDS
from exact_titan.documents.instructions import open_template
from exact_titan.documents.sources import Source
from exact_titan.documents.special_tokens import SpecialTokens
from exact_titan.documents.token_file_base import TokenFile
from exact_titan.documents.tokenizer import DocumentTokenizer
from exact_titan.errors import InputError
from exact_titan.packing.checks import SFT_POLICY, check_new, check_options, check_widths, open_sources
from exact_titan.packing.corpus import Corpus
from exact_titan.packing.doubles import check_places, leave_out_known
from exact_titan.packing.executors import Execution, PackingJob, pack_parts
from exact_titan.packing.merge import move_parts, sft_record, source_records
from exact_titan.packing.parts import PART_BYTES, PackOptions, divide_into_parts
from exact_titan.packing.selection import first_limits, select
from exact_titan.packing.work_folder import WorkFolder, remove_left_over, work_folder

SHARD_TOKENS = 2**25


def pack(
    corpus: Corpus | Sequence[str | Path],
    *,
    tokenizer: Path,
    seq_len: int,
    out: Path,
    val_fraction: float = 0.0,
    policy: str | None = None,
    template: str | None = None,
    text_key: str = "text",
    eos_token: str | None = None,
    special_tokens: SpecialTokens = "text",
    split_at_eos: bool = False,
    workers: int | None = None,
    execution: Execution | None = None,
    shard_tokens: int = SHARD_TOKENS,
    part_bytes: int = PART_BYTES,
) -> Manifest:
    """Pack documents into windows of ``seq_len`` inputs, and write the dataset to ``out``.

    The bytes of the dataset do not depend on the executor or on the number of tasks. Finished parts are kept in the
    folder ``.NAME.partial`` next to ``out`` until the dataset is complete. After any interruption, a later call finds
    the finished parts there. The dataset appears in one step at the end.

    Args:
        corpus: a list of files, folders and URLs of documents (:mod:`exact_titan.documents.sources`) and of token files
            (:mod:`exact_titan.documents.token_files`), or a list of one corpus TOML, or a :class:`Corpus`. Documents
            are packed in the order of the list.
        tokenizer: Hugging Face tokenizer folder or ``tokenizer.json``. For token files, the tokenizer that made the
            files.
        seq_len: inputs per window, from 2 to 2^26.
        out: the new folder. Missing parent folders are made.
        val_fraction: expected share of the documents in the split ``val``, in [0, 1). A hash of a document's text, or
            of its ids for a token file, decides the split. Equal documents are therefore always in the same split.
        policy: packing policy, one of :data:`~exact_titan.dataset.policies.POLICIES`. None: ``best_fit`` for
            instructions, else ``concat``. Instructions take no other policy, because ``best_fit`` cuts no sample.
        template: template of instructions, one of :data:`~exact_titan.documents.instructions.TEMPLATES`. The rows of
            the files are then instructions, and only the responses have a loss. A sample that is longer than the window
            is left out. None: the files have documents.
        text_key: key (column) of the text in .jsonl and .parquet files.
        eos_token: end-of-text token. Default: the token that the tokenizer names.
        special_tokens: special tokens that a document spells stay text, or become their ids. Special tokens that a
            row of instructions spells always stay text.
        split_at_eos: whether a document of a token file also ends at every end-of-text id inside it.
        workers: number of cores of this machine (default: all). Used only without ``execution``.
        execution: the executor of the parts.
        shard_tokens: number of stored tokens at which a shard is closed.
        part_bytes: maximum size of a part. No window and no shard has documents of two parts.

    Returns:
        The manifest of the dataset.

    Raises:
        InputError: if a value, source, row or tokenizer cannot be used, a source of a mix runs out before its share,
            ``out`` exists or cannot be written, or the training split has no window.
    """
    corpus = corpus if isinstance(corpus, Corpus) else Corpus.of(corpus)
    execution = execution or Execution(workers=workers)
    policy = policy or (SFT_POLICY if template else "concat")
    check_options(tokenizer, seq_len, out, val_fraction, policy, template)
    opened = open_sources(corpus, text_key, template, special_tokens)
    if template:
        special_tokens = "ids"  # of the template; special tokens that a row spells stay text
    document_tokenizer = DocumentTokenizer(tokenizer, eos_token, special_tokens)
    record = document_tokenizer.record
    if record.vocab_size > MOST_IDS:
        raise InputError(
            f"--tokenizer {tokenizer}: it has {record.vocab_size} ids, and a dataset at most {MOST_IDS}: give another"
        )
    check_widths(opened, record.eos_id)
    sft = SftRecord(template, open_template(template, tokenizer).sha256, 0, []) if template else None
    options = PackOptions(
        str(tokenizer),
        record.sha256,
        record.eos_token,
        seq_len,
        policy,
        val_fraction,
        text_key,
        shard_tokens,
        template=sft.template if sft else "",
        template_sha256=sft.template_sha256 if sft else "",
        special_tokens=special_tokens,
        split_at_eos=split_at_eos,
    )
    with work_folder(out) as work:
        new = _Packed(corpus, opened, options, part_bytes, work, execution)
        work.dataset.mkdir()
        splits = new.move_to(work.dataset, {})
        if "train" not in splits:
            documents = sum(source.documents for source in new.sources)
            way_out = "give more documents or a smaller --val-fraction"
            if all(source.split == "val" for source in corpus.sources):
                way_out = 'all sources have split = "val", give a source for training'
            raise InputError(
                f"the training split has no window: {documents} documents were packed, and all went to validation: "
                f"{way_out}"
            )
        document_tokenizer.save(work.dataset / TOKENIZER_FOLDER)
        manifest = Manifest(
            sources=new.sources,
            tokenizer=record,
            window=seq_len,
            policy=policy,
            token_dtype=str(document_tokenizer.dtype),
            val_fraction=val_fraction,
            splits=splits,
            sft=sft_record(sft, new.results) if sft else None,
        )
        manifest.write(work.dataset)
        work.announce(manifest.fingerprint)
        work.publish(out)
    return manifest


def append(
    folder: Path,
    corpus: Corpus | Sequence[str | Path],
    *,
    text_key: str = "text",
    special_tokens: SpecialTokens = "text",
    split_at_eos: bool = False,
    execution: Execution | None = None,
    shard_tokens: int = SHARD_TOKENS,
    part_bytes: int = PART_BYTES,
) -> Manifest:
    """Add documents to a packed dataset, with the dataset's tokenizer, window, policy and validation fraction.

    A dataset of instructions takes instructions, with the dataset's template. The present windows do not change. The
    new windows come after the present windows. Files that the dataset already holds are left out and counted. The
    dataset gets a new manifest and a new fingerprint in one step at the end. Until this step, and after an error, the
    dataset is the old dataset. A dataset of an older format keeps its format
    (:mod:`exact_titan.dataset.manifest`): its fingerprint still covers the names of the sources.

    Args:
        folder: the dataset.
        corpus: as in :func:`pack`. The weights of a mix apply only to the added documents.
        text_key, special_tokens, split_at_eos, execution, shard_tokens, part_bytes: as in :func:`pack`.

    Returns:
        The new manifest of the dataset.

    Raises:
        InputError: in the cases of :func:`pack`; also if the dataset already has all files of one of the sources.
    """
    corpus = corpus if isinstance(corpus, Corpus) else Corpus.of(corpus)
    manifest = Manifest.read(folder)
    remove_left_over(folder)
    sft = manifest.sft
    opened = open_sources(corpus, text_key, sft.template if sft else None, special_tokens)
    check_places(corpus, opened)
    leave_out_known(folder, manifest, opened)
    if sft:
        special_tokens = "ids"
    tokenizer = folder / TOKENIZER_FOLDER
    record = DocumentTokenizer(tokenizer, manifest.tokenizer.eos_token, special_tokens).record
    if record.sha256 != manifest.tokenizer.sha256:
        raise InputError(f"{tokenizer} is not the tokenizer that {folder} was packed with: copy the dataset again")
    check_widths(opened, record.eos_id)
    if sft and open_template(sft.template, tokenizer).sha256 != sft.template_sha256:
        raise InputError(
            f"{folder} was packed with another text of the template {sft.template}: pack all rows into a new dataset"
        )
    options = PackOptions(
        str(tokenizer),
        record.sha256,
        record.eos_token,
        manifest.window,
        manifest.policy,
        manifest.val_fraction,
        text_key,
        shard_tokens,
        template=sft.template if sft else "",
        template_sha256=sft.template_sha256 if sft else "",
        special_tokens=special_tokens,
        split_at_eos=split_at_eos,
    )
    with work_folder(folder) as work:
        new = _Packed(
            corpus, opened, options, part_bytes, work, execution or Execution(), covers_names=manifest.covers_names
        )
        check_new(folder, manifest, new.sources)
        splits = new.move_to(folder, manifest.splits)
        manifest = manifest.with_more(new.sources, splits, sft_record(sft, new.results) if sft else None)
        work.announce(manifest.fingerprint)
        manifest.write(folder)
    return manifest


class _Packed:
    """A packed corpus. Its parts do not belong to a dataset yet."""

    def __init__(
        self,
        corpus: Corpus,
        opened: Sequence[Source | TokenFile],
        options: PackOptions,
        part_bytes: int,
        work: WorkFolder,
        execution: Execution,
        *,
        covers_names: bool = False,
    ) -> None:
        parts = divide_into_parts(corpus, opened, options, part_bytes)
        limits = first_limits(corpus) if corpus.is_limited else {}
        by_index = dict(enumerate(opened))
        pack_parts(PackingJob(parts, by_index, limits, parts), work, execution)
        self._work, self._window, self._masked = work, options.seq_len, bool(options.template)
        self._parts = select(
            corpus, parts, work.parts, lambda cut: pack_parts(PackingJob(cut, by_index, {}, parts), work, execution)
        )
        self.results = [result for _, result in self._parts]
        self.sources: list[SourceRecord] = source_records(
            [
                (entry.name or source.name, isinstance(source, Source) and not source.is_folder)
                for entry, source in zip(corpus.sources, opened, strict=True)
            ],
            self.results,
            [source.passed_over if isinstance(source, Source) else {} for source in opened],
            covers_names=covers_names,
        )

    def move_to(self, dataset: Path, before: dict[str, SplitRecord]) -> dict[str, SplitRecord]:
        """Move the shards into a dataset's folder. Return the new splits of the dataset."""
        return move_parts(self._parts, self._work.parts, dataset, before, window=self._window, masked=self._masked)
