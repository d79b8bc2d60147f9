import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from itertools import accumulate, chain, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from exact_titan.dataset import Manifest, PackedDataset
from exact_titan.dataset.policies import POLICIES, lay_out
from exact_titan.dataset.shards import Shard
from exact_titan.dataset.verify import verify
from exact_titan.errors import InputError
from exact_titan.exposure import Buckets, effective_context
from exact_titan.packing import pack
from exact_titan.reports.policies import measure_policies
from tests import warm_ranks

pytest_plugins = ["tests.text_fixtures"]

EOS = 0
WriteJsonl = Callable[[Path, list[str]], Path]


def reference_windows(documents: list[list[int]], window: int) -> list[dict[str, list[int]]]:
    """Pack by the definition, one token at a time."""
    rows: list[list[tuple[int, int, int]]] = [[]]
    for document in documents:
        position = 0
        for token, label in pairwise(document):
            if len(rows[-1]) == window:
                rows.append([])
                position = 0
            rows[-1].append((token, label, position))
            position += 1
    if not rows[-1]:
        rows.pop()
    elif len(rows[-1]) < window:
        rows[-1] += [(0, -100, position) for position in range(window - len(rows[-1]))]
    windows = []
    for row in rows:
        inputs, labels, positions = (list(column) for column in zip(*row, strict=True))
        borders = [index for index, position in enumerate(positions) if position == 0] + [window]
        windows.append({"input": inputs, "labels": labels, "positions": positions, "cu_seqlens": borders})
    return windows


def document_texts(lengths: list[int]) -> tuple[list[str], list[list[int]]]:
    """Return texts of documents with these numbers of tokens, end-of-text included, and the ids of the documents."""
    draw = random.Random(len(lengths))
    documents = [[draw.randrange(1, 300) for _ in range(length - 1)] + [EOS] for length in lengths]
    texts = [" ".join(map(str, ids[:-1])) if len(ids) > 1 else "</s>" for ids in documents]
    return texts, documents


def as_lists(dataset: PackedDataset) -> list[dict[str, list[int]]]:
    return [{name: tensor.tolist() for name, tensor in dataset[k].items()} for k in range(len(dataset))]


# No deadline: the test machines are shared and sometimes slow.
@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 70), min_size=1, max_size=25),
    window=st.integers(2, 24),
    shard_tokens=st.integers(1, 90),
)
@example(lengths=[9], window=8, shard_tokens=1)  # exactly a window
@example(lengths=[8, 9, 10], window=8, shard_tokens=8)
@example(lengths=[70, 1, 1, 33], window=8, shard_tokens=16)  # several windows and shards long
@example(lengths=[2] * 20, window=7, shard_tokens=14)  # one input a document
@example(lengths=[1, 1], window=2, shard_tokens=1)  # no document that can be packed
def test_agrees_with_the_definition(
    tmp_path_factory: pytest.TempPathFactory,
    word_tokenizer: Path,
    write_jsonl: WriteJsonl,
    lengths: list[int],
    window: int,
    shard_tokens: int,
) -> None:
    folder = tmp_path_factory.mktemp("pack")
    texts, documents = document_texts(lengths)
    source = write_jsonl(folder / "documents.jsonl", texts)
    options = {"tokenizer": word_tokenizer, "seq_len": window, "out": folder / "out", "shard_tokens": shard_tokens}
    expected = reference_windows(documents, window)
    if not expected:
        with pytest.raises(InputError, match=r"training split has no window|are shorter than two tokens"):
            pack([source], **options)
        assert not (folder / "out").exists()
        return
    manifest = pack([source], **options)
    dataset = PackedDataset(folder / "out")
    windows = as_lists(dataset)
    assert windows == expected

    packed = [document for document in documents if len(document) > 1]
    check_against_windows(folder / "out", packed)
    assert manifest.sources[0].documents == len(packed)
    assert manifest.sources[0].tokens == sum(map(len, packed))
    assert manifest.sources[0].dropped == {"no text": 0, "shorter than two tokens": len(documents) - len(packed)}


def check_against_windows(folder: Path, packed: list[list[int]]) -> None:
    """Recount tokens and exposure from the windows of the split ``train``, a token at a time."""
    dataset = PackedDataset(folder)
    windows, window, record = as_lists(dataset), dataset.window, dataset.record
    # Every token except a document's last is an input once. Every token except a document's first is a label once.
    tokens = Counter(token for document in packed for token in document[:-1])
    labels = Counter(token for document in packed for token in document[1:])
    supervised = [[label != -100 for label in row["labels"]] for row in windows]
    rows = list(zip(windows, supervised, strict=True))
    assert Counter(t for row, valid in rows for t, ok in zip(row["input"], valid, strict=True) if ok) == tokens
    assert Counter(t for row, valid in rows for t, ok in zip(row["labels"], valid, strict=True) if ok) == labels

    # The counts of the manifest are the counts of the windows.
    valid = torch.tensor(supervised)
    contexts = effective_context(torch.tensor([row["positions"] for row in windows]))[valid]
    counts = torch.bincount(Buckets(window).index(contexts), minlength=len(Buckets(window)))
    assert record.bucket_counts == counts.tolist() == dataset.counts.tolist()
    assert record.targets == record.tokens == int(valid.sum())
    assert record.padding == len(windows) * window - record.tokens
    assert record.documents == len(packed)
    assert list(verify(folder))


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(2, 70), min_size=1, max_size=25),
    window=st.integers(2, 24),
    shard_tokens=st.integers(1, 90),
)
@example(lengths=[9, 17, 18], window=8, shard_tokens=1)
def test_best_fit_stores_the_windows_that_it_lays_out(
    tmp_path_factory: pytest.TempPathFactory,
    word_tokenizer: Path,
    write_jsonl: WriteJsonl,
    lengths: list[int],
    window: int,
    shard_tokens: int,
) -> None:
    folder = tmp_path_factory.mktemp("pack")
    texts, documents = document_texts(lengths)
    source = write_jsonl(folder / "documents.jsonl", texts)
    options = {"seq_len": window, "policy": "best_fit", "shard_tokens": shard_tokens}
    pack([source], tokenizer=word_tokenizer, out=folder / "out", **options)
    expected = []
    for row in lay_out("best_fit", window, np.array(lengths)):
        segments = [documents[document][first : first + n + 1] for document, first, n in row]
        padding = window - sum(segment.inputs for segment in row)
        parts = [(ids[:-1], ids[1:]) for ids in segments] + [([0] * padding, [-100] * padding)] * bool(padding)
        expected.append(
            {
                "input": list(chain.from_iterable(inputs for inputs, _ in parts)),
                "labels": list(chain.from_iterable(labels for _, labels in parts)),
                "positions": list(chain.from_iterable(range(len(inputs)) for inputs, _ in parts)),
                "cu_seqlens": list(accumulate((len(inputs) for inputs, _ in parts), initial=0)),
            }
        )
    assert as_lists(PackedDataset(folder / "out")) == expected
    check_against_windows(folder / "out", documents)


def test_best_fit_stores_only_the_border_of_a_rest_twice(
    tmp_path: Path, word_tokenizer: Path, write_jsonl: WriteJsonl
) -> None:
    texts, documents = document_texts([5, 20])
    source = write_jsonl(tmp_path / "documents.jsonl", texts)
    pack([source], tokenizer=word_tokenizer, seq_len=8, policy="best_fit", out=tmp_path / "out")
    short, long = documents
    # The full windows come first. Then the buffer gives the document of 4 inputs and the rest of 3 inputs.
    shard = Shard(tmp_path / "out" / "train-00000.safetensors")
    assert shard.tokens.tolist() == [*long[:17], *short, *long[16:]]


def test_an_unknown_policy(tmp_path: Path, word_tokenizer: Path, write_jsonl: WriteJsonl) -> None:
    source = write_jsonl(tmp_path / "documents.jsonl", ["1 2 3"])
    with pytest.raises(InputError, match=r"--policy is 'bestfit': choose one of concat, best_fit$"):
        pack([source], tokenizer=word_tokenizer, seq_len=4, out=tmp_path / "out", policy="bestfit")


def test_a_long_document_continues_in_the_next_shard(
    tmp_path: Path, word_tokenizer: Path, write_jsonl: WriteJsonl
) -> None:
    texts, documents = document_texts([100])
    source = write_jsonl(tmp_path / "documents.jsonl", texts)
    manifest = pack([source], tokenizer=word_tokenizer, seq_len=8, out=tmp_path / "out", shard_tokens=16)
    shards = [Shard(tmp_path / "out" / entry.file) for entry in manifest.splits["train"].shards]
    assert [len(shard.tokens) for shard in shards] == [17, 17, 17, 17, 17, 17, 4]
    stored = [shard.tokens[:-1].tolist() for shard in shards[:-1]] + [shards[-1].tokens.tolist()]
    assert list(chain.from_iterable(stored)) == documents[0]
    for shard, following in pairwise(shards):
        assert shard.tokens[-1] == following.tokens[0]


def test_shards_are_safetensors(tmp_path: Path, word_tokenizer: Path, write_jsonl: WriteJsonl) -> None:
    from safetensors.numpy import load_file

    texts, _ = document_texts([20, 5, 31])
    source = write_jsonl(tmp_path / "documents.jsonl", texts)
    manifest = pack([source], tokenizer=word_tokenizer, seq_len=8, out=tmp_path / "out")
    arrays = load_file(tmp_path / "out" / "train-00000.safetensors")
    shard = Shard(tmp_path / "out" / "train-00000.safetensors")
    assert {name: str(array.dtype) for name, array in arrays.items()} == {
        "tokens": "uint16",
        "segment_start": "int64",
        "segment_length": "int32",
        "window_segments": "int64",
    }
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, getattr(shard, name))
    assert manifest.splits["train"].shards[0].tokens == 20 + 5 + 31


def test_the_validation_split_depends_on_the_text(
    tmp_path: Path, word_tokenizer: Path, write_jsonl: WriteJsonl
) -> None:
    texts, _ = document_texts([20] * 400)
    source = write_jsonl(tmp_path / "documents.jsonl", texts + texts[:100])
    options = {"tokenizer": word_tokenizer, "seq_len": 19}
    pack([source], out=tmp_path / "out", val_fraction=0.25, **options)
    sides = [{tuple(row["input"]) for row in as_lists(PackedDataset(tmp_path / "out", s))} for s in ("train", "val")]
    assert not sides[0] & sides[1], "equal documents go to one split"
    assert 0.15 < len(sides[1]) / 400 < 0.35
    # A larger share keeps the documents that a smaller one took.
    pack([source], out=tmp_path / "more", val_fraction=0.5, **options)
    assert sides[1] < {tuple(row["input"]) for row in as_lists(PackedDataset(tmp_path / "more", "val"))}


def test_no_validation_split_without_a_fraction(tmp_path: Path, word_tokenizer: Path, write_jsonl: WriteJsonl) -> None:
    source = write_jsonl(tmp_path / "documents.jsonl", ["1 2 3"])
    pack([source], tokenizer=word_tokenizer, seq_len=4, out=tmp_path / "out")
    with pytest.raises(InputError, match=r"no split 'val': choose one of train$"):
        PackedDataset(tmp_path / "out", "val")


def test_sources_stay_in_their_order(tmp_path: Path, word_tokenizer: Path, write_jsonl: WriteJsonl) -> None:
    second = write_jsonl(tmp_path / "a.jsonl", ["3 3"])
    folder = tmp_path / "z"
    (folder / "sub").mkdir(parents=True)
    write_jsonl(folder / "b.jsonl", ["1 1"])
    write_jsonl(folder / "sub" / "a.jsonl", ["2 2"])
    manifest = pack([folder, second], tokenizer=word_tokenizer, seq_len=6, out=tmp_path / "out")
    assert PackedDataset(tmp_path / "out")[0]["input"].tolist() == [1, 1, 2, 2, 3, 3]
    assert [(source.name, source.files, source.documents) for source in manifest.sources] == [
        ("z", 2, 2),
        ("a.jsonl", 1, 1),
    ]


def test_fingerprint_does_not_depend_on_the_folder(
    tmp_path: Path, word_tokenizer: Path, write_jsonl: WriteJsonl
) -> None:
    fingerprints = set()
    for place in ("here", "there/deeper"):
        (tmp_path / place).mkdir(parents=True)
        source = write_jsonl(tmp_path / place / "documents.jsonl", ["1 2 3", "4 5"])
        fingerprints.add(pack([source], tokenizer=word_tokenizer, seq_len=4, out=tmp_path / place / "out").fingerprint)
    assert len(fingerprints) == 1
    source = write_jsonl(tmp_path / "documents.jsonl", ["1 2 3", "4 6"])
    assert pack([source], tokenizer=word_tokenizer, seq_len=4, out=tmp_path / "out").fingerprint not in fingerprints


@pytest.mark.parametrize("policy", POLICIES)
def test_any_number_of_workers_gives_the_same_bytes(
    tmp_path: Path, bpe_tokenizer: Path, write_jsonl: WriteJsonl, policy: str
) -> None:
    # One process for each number of workers: a process starts the tokenizer's threads only once.
    draw = random.Random(0)
    texts = [
        " ".join(draw.choices(["fox", "東京", "def f(x):", "über", "lazy"], k=draw.randrange(1, 900)))
        for _ in range(3000)
    ]
    source = write_jsonl(tmp_path / "documents.jsonl", texts)
    contents = []
    for workers in (1, 2):
        out = tmp_path / f"out{workers}"
        options = ("--tokenizer", bpe_tokenizer, "--seq-len", 512, "--workers", workers, "--val-fraction", 0.1)
        options += ("--policy", policy)
        done = warm_ranks.run(0, "exact_titan.cli", "pack", source, "--out", out, *options, cwd=tmp_path)
        assert done.codes == [0], done.stderr
        contents.append({str(f.relative_to(out)): f.read_bytes() for f in sorted(out.rglob("*")) if f.is_file()})
    assert contents[0] == contents[1]
    assert set(contents[0]) == {
        "manifest.json",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
        "train-00000.safetensors",
        "train-lengths.npy",
        "train-work.bin",
        "val-00000.safetensors",
        "val-lengths.npy",
        "val-work.bin",
    }


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
def test_memory_does_not_grow_with_the_corpus(tmp_path: Path, word_tokenizer: Path, policy: str) -> None:
    # Batches, shards and buffers are small. The memory in flight is therefore much smaller than the corpus.
    program = """if True:
        import re, sys
        from pathlib import Path
        from exact_titan import packing
        from exact_titan.packing import part_reader
        from exact_titan.dataset.policies import best_fit
        part_reader.BATCH_BYTES = 100_000
        best_fit.BUFFER_INPUTS = 2**18
        source, tokenizer, out = map(Path, sys.argv[1:4])
        options = {"seq_len": 1024, "policy": sys.argv[4], "shard_tokens": 2**18}
        packing.pack([source], tokenizer=tokenizer, out=out, **options)
        # Not getrusage: its maximum includes this process's share in its parent, before exec.
        print(int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024)
    """
    line = json.dumps({"text": "17 5 230 4 " * 500}) + "\n"
    peaks = []
    for documents in (2000, 8000):
        source = tmp_path / f"{documents}.jsonl"
        source.write_text(line * documents)
        arguments = [sys.executable, "-c", program, str(source), str(word_tokenizer), str(tmp_path / str(documents))]
        arguments.append(policy)
        peaks.append(int(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout))
    # The larger corpus has 33 MB more text and 24 MB more ids.
    assert peaks[1] < peaks[0] + 15, f"peak memory in MiB: {peaks}"


@pytest.mark.slow
def test_book_chapters(tmp_path: Path, bpe_tokenizer: Path) -> None:
    source = Path(__file__).parents[2] / "../shared/data/book_chapters.jsonl.gz"
    if not source.exists():
        pytest.skip("../shared/data/book_chapters.jsonl.gz is not on this machine")
    options = {"tokenizer": bpe_tokenizer, "seq_len": 16384, "policy": "best_fit", "workers": 2}
    manifest = pack([source], out=tmp_path / "out", **options)
    assert manifest.sources[0].documents == 1349
    dataset = PackedDataset(tmp_path / "out")
    windows = [dataset[k] for k in range(len(dataset))]
    assert sum(int((window["labels"] >= 0).sum()) for window in windows) == manifest.splits["train"].targets
    lengths = np.load(tmp_path / "out" / "train-lengths.npy")
    (figures,) = [one for one in measure_policies(tmp_path / "out", manifest, "train") if one.policy == "best_fit"]
    assert figures.padding_share <= 0.005
    assert figures.cut == sum(lengths - 1 > 16384), "no document that fits into a window is cut"
    assert list(verify(tmp_path / "out"))


def test_documents_that_spell_special_tokens_are_counted(
    tmp_path: Path, bpe_tokenizer: Path, write_jsonl: Callable[[Path, list[str]], Path]
) -> None:
    file = write_jsonl(tmp_path / "d.jsonl", ["write <end> last", "plain", "", "<end>" * 9, "<bos>x"])
    for mode in ("text", "ids"):
        manifest = pack([file], tokenizer=bpe_tokenizer, seq_len=8, out=tmp_path / mode, special_tokens=mode)
        inside = {"end-of-text ids inside the document": 2} if mode == "ids" else {}
        assert manifest.sources[0].remarks == {f"special tokens in the text, packed as {mode}": 3} | inside
        assert Manifest.read(tmp_path / mode) == manifest
        assert (PackedDataset(tmp_path / mode)[0]["input"] == 1).any() == (mode == "ids")
