import random
from collections.abc import Callable
from pathlib import Path

import pytest
from datatrove.pipeline.tokens.megatron_tokenizer import MegatronTokenizedFile
from datatrove.pipeline.tokens.tokenizer import TokenizedFile

from exact_titan.dataset import PackedDataset
from exact_titan.dataset.policies import POLICIES
from exact_titan.dataset.verify import verify
from exact_titan.errors import InputError
from exact_titan.packing import pack

pytest_plugins = ["tests.text_fixtures"]


def write_tokens(folder: Path, documents: list[list[int]], eos: list[int]) -> tuple[Path, Path]:
    """Write the same documents as a Megatron-LM pair and as a .ds file."""
    pair = MegatronTokenizedFile(str(folder), "corpus", token_size=4)
    ds = TokenizedFile(str(folder), "corpus.ds", token_size=2)
    for ids in documents:
        pair.write(ids + eos)
        ds.write(ids + eos, None)
    pair.close()
    ds.close()
    return folder / "corpus.bin", folder / "corpus.ds"


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("eos", [[], [0]])
def test_token_files_give_the_windows_of_their_texts(
    tmp_path: Path, word_tokenizer: Path, write_jsonl: Callable, eos: list[int], policy: str
) -> None:
    draw = random.Random(0)
    documents = [[draw.randrange(1, 300) for _ in range(draw.randrange(0, 90))] for _ in range(700)]
    texts = [" ".join(map(str, ids)) for ids in documents]
    options = {"tokenizer": word_tokenizer, "seq_len": 32, "policy": policy, "shard_tokens": 5000}
    pack([write_jsonl(tmp_path / "a.jsonl", texts)], out=tmp_path / "text", **options)
    expected = {f.name: f.read_bytes() for f in (tmp_path / "text").glob("train*")}
    for number, file in enumerate(write_tokens(tmp_path, documents, eos)):
        manifest = pack([file], out=tmp_path / str(number), **options)
        assert {f.name: f.read_bytes() for f in (tmp_path / str(number)).glob("train*")} == expected
        (record,) = manifest.sources
        empty = sum(not ids for ids in documents)
        assert (record.name, record.files, record.dropped) == (file.name, 2, {"shorter than two tokens": empty})
        assert record.documents == len(documents) - empty
        assert list(verify(tmp_path / str(number)))


def test_texts_and_token_files_in_their_order(tmp_path: Path, word_tokenizer: Path, write_jsonl: Callable) -> None:
    pair, ds = write_tokens(tmp_path, [[1, 2], [3]], [])
    texts = write_jsonl(tmp_path / "a.jsonl", ["4 5"])
    manifest = pack([ds, texts, pair.with_suffix(".idx")], tokenizer=word_tokenizer, seq_len=8, out=tmp_path / "out")
    assert PackedDataset(tmp_path / "out")[0]["input"].tolist() == [1, 2, 3, 4, 5, 1, 2, 3]
    assert [source.name for source in manifest.sources] == ["corpus.ds", "a.jsonl", "corpus.bin"]


def test_equal_documents_of_token_files_go_to_one_side(tmp_path: Path, word_tokenizer: Path) -> None:
    documents = [[1 + k // 17, 1 + k % 17, 5, 6] for k in range(400)]
    sources = write_tokens(tmp_path, documents, [])
    pack(sources, tokenizer=word_tokenizer, seq_len=4, out=tmp_path / "out", val_fraction=0.25)
    sets = [PackedDataset(tmp_path / "out", split) for split in ("train", "val")]
    sides = [{tuple(data[k]["input"].tolist()) for k in range(len(data))} for data in sets]
    assert not sides[0] & sides[1]
    assert 0.15 < len(sides[1]) / 400 < 0.35


def test_token_files_that_cannot_be_packed(tmp_path: Path, word_tokenizer: Path) -> None:
    _, ds = write_tokens(tmp_path, [[1, 2], [3, 300]], [])
    options = {"tokenizer": word_tokenizer, "seq_len": 4, "out": tmp_path / "out"}
    with pytest.raises(InputError, match=r"corpus\.ds, document 2 of 2: id 300 is not among the tokenizer's 300 ids"):
        pack([ds], **options)
    with pytest.raises(InputError, match=r"corpus\.bin and corpus\.idx are one source: give one of them$"):
        pack(sorted(tmp_path.glob("corpus.[bi]*")), **options)
    assert not (tmp_path / "out").exists()


def test_packed_samples_are_refused_or_split(tmp_path: Path, word_tokenizer: Path) -> None:
    samples = [[5, 6, 0, 7, 8, 0, 9], [10, 0, 11, 12, 13, 0, 14]]
    for number, file in enumerate(write_tokens(tmp_path, samples, [])):
        options = {"tokenizer": word_tokenizer, "seq_len": 8}
        with pytest.raises(
            InputError, match=r"2 of 2 documents have end-of-text ids inside, more than 1 %: give --split-"
        ):
            pack([file], out=tmp_path / "out", **options)
        manifest = pack([file], out=tmp_path / f"split{number}", **options, split_at_eos=True)
        (record,) = manifest.sources
        assert (record.documents, record.tokens, record.remarks) == (6, 16, {})
        first, second = (PackedDataset(tmp_path / f"split{number}")[k] for k in (0, 1))
        assert first["input"].tolist() == [5, 6, 7, 8, 9, 10, 11, 12]
        assert first["positions"].tolist() == [0, 1, 0, 1, 0, 0, 0, 1]
        assert second["input"].tolist()[:2] == [13, 14]


def test_few_ids_inside_are_counted(tmp_path: Path, word_tokenizer: Path) -> None:
    samples = [[5, 6, 7]] * 198 + [[0, 8, 9], [5, 0, 0, *range(1, 30)], [6, 0]]
    pair, _ = write_tokens(tmp_path, samples, [])
    manifest = pack([pair], tokenizer=word_tokenizer, seq_len=8, out=tmp_path / "out", shard_tokens=100)
    assert manifest.sources[0].remarks == {"end-of-text ids inside the document": 1}
    *_, split = verify(tmp_path / "out")
    assert split.endswith("bucket counts, 2 end-of-text ids inside documents")
