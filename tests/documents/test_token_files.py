import hashlib
import struct
import tracemalloc
from collections.abc import Callable, Iterable
from itertools import accumulate, chain, islice
from pathlib import Path

import numpy as np
import pytest
from datatrove.data import Document
from datatrove.pipeline.tokens.megatron_tokenizer import MegatronTokenizedFile
from datatrove.pipeline.tokens.tokenizer import DocumentTokenizer as DatatroveTokenizer
from datatrove.pipeline.tokens.tokenizer import TokenizedFile
from hypothesis import example, given, settings
from hypothesis import strategies as st

from exact_titan.documents import token_file_base
from exact_titan.documents.digests import digest_of_all
from exact_titan.documents.token_files import ended_documents, ids_inside, is_token_file, open_token_file
from exact_titan.errors import InputError

pytest_plugins = ["tests.text_fixtures"]

EOS = 0
# The code of Megatron-LM's DType in the index, and the type letter of struct.
CODES = {
    "uint8": (1, "B"),
    "int8": (2, "b"),
    "int16": (3, "h"),
    "int32": (4, "i"),
    "int64": (5, "q"),
    "uint16": (8, "H"),
}


def write_megatron(
    prefix: Path,
    documents: list[list[list[int]]],
    dtype: str,
    *,
    magic: bytes = b"MMIDIDX\0\0",
    version: int = 1,
    code: int | None = None,
    lengths: list[int] | None = None,
    pointers: list[int] | None = None,
    borders: list[int] | None = None,
    modes: bytes = b"",
) -> Path:
    """Write NAME.bin and NAME.idx in the published layout. The options write wrong values."""
    letter = CODES[dtype][1]
    sequences = [sequence for document in documents for sequence in document]
    data = b"".join(struct.pack(f"<{len(ids)}{letter}", *ids) for ids in sequences)
    ends = list(accumulate((len(ids) * struct.calcsize(f"<{letter}") for ids in sequences), initial=0))
    lengths = list(map(len, sequences)) if lengths is None else lengths
    pointers = ends[:-1] if pointers is None else pointers
    borders = list(accumulate(map(len, documents), initial=0)) if borders is None else borders
    index = magic + struct.pack("<Q", version) + struct.pack("<B", CODES[dtype][0] if code is None else code)
    index += struct.pack("<QQ", len(sequences), len(borders))
    index += struct.pack(f"<{len(lengths)}i", *lengths)
    index += struct.pack(f"<{len(pointers)}q", *pointers) + struct.pack(f"<{len(borders)}q", *borders)
    prefix.with_suffix(".bin").write_bytes(data)
    prefix.with_suffix(".idx").write_bytes(index + modes)
    return prefix.with_suffix(".bin")


def write_datatrove(file: Path, documents: list[list[int]], width: int) -> Path:
    """Write NAME.ds and NAME.ds.index in the layout of datatrove's TokenizedFile."""
    letter = {2: "H", 4: "I"}[width]
    file.write_bytes(b"".join(struct.pack(f"<{len(ids)}{letter}", *ids) for ids in documents))
    ends = list(accumulate(map(len, documents)))
    Path(f"{file}.index").write_bytes(struct.pack(f"<{len(ends)}Q", *ends))
    return file


def as_lists(documents: Iterable[np.ndarray]) -> list[list[int]]:
    return [ids_m.tolist() for ids_m in documents]


@st.composite
def megatron_documents(draw: st.DrawFn) -> tuple[str, list[list[list[int]]]]:
    """Draw a dtype and documents of sequences of ids. Sequences and documents may be empty, but not all of them."""
    dtype = draw(st.sampled_from(sorted(CODES)))
    ids = st.integers(0, int(np.iinfo(dtype).max))
    documents = st.lists(st.lists(st.lists(ids, max_size=9), max_size=4), min_size=1, max_size=12)
    return dtype, draw(documents.filter(lambda all: any(chain.from_iterable(all))))


# No deadline: the test machines are shared and sometimes slow.
@settings(deadline=None, max_examples=80)
@given(written=megatron_documents(), block=st.integers(1, 5), first=st.integers(0, 12))
@example(written=("int32", [[[7, 8], [9], [10, 11, 12]], [], [[13]]]), block=1, first=1)
@example(written=("uint16", [[[65535]], [[], []], [[1], [], [2]]]), block=5, first=2)
def test_megatron_documents_come_out_token_for_token(
    tmp_path_factory: pytest.TempPathFactory,
    written: tuple[str, list[list[list[int]]]],
    block: int,
    first: int,
) -> None:
    dtype, documents = written
    expected = [list(chain.from_iterable(document)) for document in documents]
    file = write_megatron(tmp_path_factory.mktemp("megatron") / "corpus_text.v1", documents, dtype)
    with pytest.MonkeyPatch.context() as patch:
        # The result must not depend on the size of the index blocks.
        patch.setattr(token_file_base, "_BLOCK", block)
        opened = open_token_file(file)
        assert as_lists(opened.read()) == expected
        assert as_lists(opened.read(first)) == expected[first:]
    assert {ids_m.dtype for ids_m in opened.read()} == {opened.dtype} == {np.dtype(dtype)}
    assert (len(opened), opened.tokens) == (len(expected), sum(map(len, expected)))


@settings(deadline=None, max_examples=80)
@given(
    width=st.sampled_from([2, 4]),
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any),
    block=st.integers(1, 5),
    first=st.integers(0, 12),
)
def test_datatrove_documents_come_out_token_for_token(
    tmp_path_factory: pytest.TempPathFactory, width: int, lengths: list[int], block: int, first: int
) -> None:
    rng = np.random.default_rng(sum(lengths))
    documents = [rng.integers(0, 256**width, size=length).tolist() for length in lengths]
    file = write_datatrove(tmp_path_factory.mktemp("datatrove") / "00000.ds", documents, width)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_file_base, "_BLOCK", block)
        opened = open_token_file(file)
        assert as_lists(opened.read()) == documents
        assert as_lists(opened.read(first)) == documents[first:]
    assert (len(opened), opened.tokens, opened.dtype.itemsize) == (len(documents), sum(lengths), width)


@pytest.mark.parametrize("eos_token", [None, "</s>"])
def test_datatroves_own_tokenizer(tmp_path: Path, word_tokenizer: Path, eos_token: str | None) -> None:
    texts = ["1 2 3", "299", "17 " * 400]
    step = DatatroveTokenizer(
        str(tmp_path), str(word_tokenizer / "tokenizer.json"), eos_token=eos_token, shuffle_documents=False
    )
    step.run(Document(text=text, id=str(number)) for number, text in enumerate(texts))
    file = open_token_file(tmp_path / "00000_unshuffled.ds")
    expected = [list(map(int, text.split())) for text in texts]
    assert as_lists(file.read()) == [ids + [EOS] * (eos_token is not None) for ids in expected]
    ended = ended_documents(file, eos_id=EOS, vocab_size=300, dtype=np.dtype(np.uint16))
    assert as_lists(ended) == [[*ids, EOS] for ids in expected]


def test_datatroves_own_writers(tmp_path: Path) -> None:
    documents = [[1, 2, 128001], [70000, 3], [4]]
    ds = TokenizedFile(str(tmp_path), "long.ds", token_size=4, save_final_metadata=True)
    pair = MegatronTokenizedFile(str(tmp_path), "pair", token_size=4)
    for ids in documents:
        ds.write(ids, None)
        pair.write(ids)
    ds.close()
    pair.close()
    assert as_lists(open_token_file(tmp_path / "long.ds").read()) == documents
    assert as_lists(open_token_file(tmp_path / "pair.idx").read()) == documents


def test_a_pair_is_the_same_by_either_file(tmp_path: Path) -> None:
    data = write_megatron(tmp_path / "corpus", [[[1, 2]], [[3]]], "int32")
    index = tmp_path / "corpus.idx"
    for path in (data, index):
        assert is_token_file(path)
        file = open_token_file(path)
        assert (file.name, file.files) == ("corpus.bin", [data, index])
        assert file.bytes == data.stat().st_size + index.stat().st_size
        digests = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in (data, index)]
        assert digest_of_all(file.digests()) == hashlib.sha256("".join(digests).encode()).hexdigest()
    before = digest_of_all(file.digests())
    write_megatron(tmp_path / "corpus", [[[1], [2, 3]]], "int32")
    assert digest_of_all(open_token_file(data).digests()) != before, (
        "the same ids in other documents have another digest"
    )


def test_which_paths_are_token_files(tmp_path: Path) -> None:
    (tmp_path / "folder.ds").mkdir()
    names = ["a.bin", "a.idx", "a.ds", "a.jsonl", "a.ds.index", "folder.ds"]
    assert [name for name in names if is_token_file(tmp_path / name)] == ["a.bin", "a.idx", "a.ds"]


def test_documents_for_the_packer_end_with_end_of_text(tmp_path: Path) -> None:
    documents = [[[5, 6, EOS]], [[5], [6]], [], [[EOS]], [[EOS, 7]]]
    file = open_token_file(write_megatron(tmp_path / "corpus", documents, "int32"))
    for dtype in (np.dtype(np.uint16), np.dtype(np.uint32)):
        ended = list(ended_documents(file, eos_id=EOS, vocab_size=8, dtype=dtype))
        assert as_lists(ended) == [[5, 6, EOS], [5, 6, EOS], [EOS], [EOS], [EOS, 7, EOS]]
        assert {ids_m.dtype for ids_m in ended} == {dtype}


def test_a_type_that_the_end_of_text_id_does_not_fit(tmp_path: Path) -> None:
    file = open_token_file(write_datatrove(tmp_path / "short.ds", [[5, 6]], 2))
    file.check_width(2**16 - 1)
    with pytest.raises(
        InputError, match=r"short\.ds: its ids are uint16, and the tokenizer's end-of-text id 128001 does"
    ):
        file.check_width(128001)


def test_documents_end_at_the_ids_inside(tmp_path: Path) -> None:
    documents = [[[5, EOS, 6], [7, EOS]], [[EOS, 5, 6]], [], [[5, EOS, EOS, 6]], [[5, 6]]]
    file = open_token_file(write_megatron(tmp_path / "corpus", documents, "int32"))
    options = {"eos_id": EOS, "vocab_size": 8, "dtype": np.dtype(np.uint16)}
    whole = list(ended_documents(file, **options))
    assert [ids_inside(ids_m, EOS) for ids_m in whole] == [1, 0, 0, 2, 0]
    split = ended_documents(file, **options, split_at_eos=True)
    assert as_lists(split) == [
        *([5, EOS], [6, 7, EOS]),
        *([EOS], [5, 6, EOS]),
        [EOS],
        *([5, EOS], [EOS], [6, EOS]),
        [5, 6, EOS],
    ]


@pytest.mark.parametrize(("wrong", "first"), [(300, 0), (300, 2), (-1, 0), (-1, 2)])
def test_an_id_beyond_the_vocabulary_is_named(tmp_path: Path, wrong: int, first: int) -> None:
    file = open_token_file(write_megatron(tmp_path / "corpus", [[[1]], [[299]], [[2], [3, wrong]]], "int32"))
    ended = ended_documents(file, eos_id=EOS, vocab_size=300, dtype=np.dtype(np.uint16), first=first)
    assert as_lists(islice(ended, 2 - first)) == [[1, EOS], [299, EOS]][first:]
    message = rf"corpus\.bin, document 3 of 3: id {wrong} is not among the tokenizer's 300 ids: give the --tokenizer"
    with pytest.raises(InputError, match=message):
        next(ended)


def test_reading_keeps_nothing_in_memory(tmp_path: Path) -> None:
    documents, length = 4000, 1000
    np.arange(documents * length, dtype=np.uint32).tofile(tmp_path / "corpus.ds")
    (np.arange(1, documents + 1, dtype=np.uint64) * length).tofile(tmp_path / "corpus.ds.index")
    tracemalloc.start()
    file = open_token_file(tmp_path / "corpus.ds")
    last = [int(ids_m[-1]) for ids_m in file.read(documents - 2)]
    total = sum(len(ids_m) for ids_m in file.read())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert last == [documents * length - 1001, documents * length - 1]
    assert total == file.tokens == documents * length
    assert peak < 1_000_000, f"peak of {peak} bytes, the file has 16 MB"


@pytest.mark.parametrize("fall", range(9))
def test_a_fall_of_the_index_is_found_wherever_its_blocks_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fall: int
) -> None:
    monkeypatch.setattr(token_file_base, "_BLOCK", 3)
    file = write_datatrove(tmp_path / "corpus.ds", [[1, 2]] * 10, 2)
    ends = np.arange(2, 22, 2, dtype=np.uint64)
    ends[fall] += 3
    ends.tofile(tmp_path / "corpus.ds.index")
    with pytest.raises(InputError, match=rf"broken \(document {fall + 2} ends before it begins\)"):
        open_token_file(file)


GOOD = [[[1, 2, 3], [4]], [[5, 6]]]


def bad_megatron(**options: object) -> Callable[[Path], Path]:
    return lambda folder: write_megatron(folder / "corpus", GOOD, "int32", **options)  # type: ignore[arg-type]


def changed(name: str, change: Callable[[bytes], bytes] | None) -> Callable[[Path], Path]:
    """Write good files of both formats, and change the bytes of one file or remove the file."""

    def write(folder: Path) -> Path:
        write_megatron(folder / "corpus", GOOD, "int32")
        write_datatrove(folder / "other.ds", [[1, 2, 3], [4, 5]], 2)
        if change is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(change((folder / name).read_bytes()))
        return folder / ("corpus.bin" if name.startswith("corpus") else "other.ds")

    return write


def with_loss_mask(folder: Path) -> Path:
    (folder / "other.ds.loss").write_bytes(bytes(5))
    return write_datatrove(folder / "other.ds", [[1, 2, 3], [4, 5]], 2)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda folder: folder / "none.bin", r"none\.bin: no such file$"),
        (changed("corpus.idx", None), r"corpus\.bin: there is no \S*corpus\.idx: the two files belong together"),
        (changed("corpus.bin", None), r"corpus\.bin: there is no \S*corpus\.bin: the two files belong together"),
        (changed("other.ds.index", None), r"other\.ds: there is no \S*other\.ds\.index: the two files belong together"),
        (bad_megatron(magic=b"TNTIDX\0\0\0"), r"corpus\.idx is not an index of Megatron-LM .*MMIDIDX.*preprocess_data"),
        (
            changed("corpus.bin", lambda content: b"version https://git-lfs.github.com/spec/v1\n"),
            r"corpus\.bin is a pointer of Git LFS, not the file: run `git lfs pull`",
        ),
        (changed("corpus.idx", lambda content: b""), r"corpus\.idx is not an index of Megatron-LM"),
        (changed("corpus.idx", lambda content: content[:20]), r"corpus\.idx is broken \(cut short after 20 bytes\)"),
        (changed("corpus.idx", lambda content: content[:-8]), r"corpus\.idx is broken \(it has 86 bytes, .* say 94\)"),
        (changed("corpus.idx", lambda content: content + b"0"), r"corpus\.idx is broken \(it has 95 bytes"),
        (
            bad_megatron(version=2),
            r"corpus\.idx has version 2, this version of exact_titan reads 1: write the pair",
        ),
        (bad_megatron(code=7), r"has dtype code 7, which is no integer type \(1 uint8, .* 8 uint16\): write the pair"),
        (bad_megatron(code=9), r"has dtype code 9, which is no integer type"),
        (bad_megatron(modes=bytes(3)), r"corpus\.idx has sequence modes, the data are multimodal: give a pair of text"),
        (
            bad_megatron(code=8),
            r"broken \(sequence 2 does not begin where the sequence before it ends\): copy or write",
        ),
        (bad_megatron(pointers=[0, 16, 12]), r"broken \(sequence 2 does not begin where the sequence before it ends\)"),
        (bad_megatron(pointers=[4, 16, 20]), r"broken \(sequence 1 does not begin where"),
        (bad_megatron(lengths=[4, -1, 3], pointers=[0, 16, 12]), r"broken \(sequence 2 does not begin where"),
        (bad_megatron(borders=[]), r"broken \(its documents do not cover its 3 sequences\)"),
        (bad_megatron(borders=[0, 2]), r"broken \(its documents do not cover its 3 sequences\)"),
        (bad_megatron(borders=[1, 2, 3]), r"broken \(its documents do not cover its 3 sequences\)"),
        (bad_megatron(borders=[0, 3, 1, 3]), r"broken \(document 2 begins after its end\)"),
        (changed("corpus.bin", lambda content: content[:-1]), r"corpus\.bin has 23 bytes, its index says 24: .*copy"),
        (changed("corpus.bin", lambda content: content * 2), r"corpus\.bin has 48 bytes, its index says 24"),
        (lambda folder: write_megatron(folder / "corpus", [[]], "int32"), r"corpus\.bin: it holds no token, leave it"),
        (changed("other.ds", lambda content: content[:-2]), r"other\.ds has 8 bytes, its index says 5 ids of 2 or 4: "),
        (changed("other.ds.index", lambda content: b""), r"other\.ds has 10 bytes, its index says 0 ids"),
        (
            changed("other.ds.index", lambda content: content[:9]),
            r"other\.ds\.index is broken \(it has 9 bytes, no mul",
        ),
        (
            changed("other.ds.index", lambda content: content[8:] + content[:8] + content[8:]),
            r"other\.ds\.index is broken \(document 2 ends before it begins\)",
        ),
        (lambda folder: write_datatrove(folder / "other.ds", [], 2), r"other\.ds: it holds no token, leave it out"),
        (
            with_loss_mask,
            r"other\.ds\.loss masks the loss, which a packed dataset cannot hold: move it to another folder",
        ),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, write: Callable[[Path], Path], message: str) -> None:
    path = write(tmp_path)
    with pytest.raises(InputError, match=message) as error:
        open_token_file(path)
    assert str(error.value).startswith(f"source {path}: ")
    assert "\n" not in str(error.value)
