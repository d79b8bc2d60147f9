from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from datatrove.pipeline.tokens.tokenizer import TokenizedFile

from exact_titan.errors import InputError
from exact_titan.packing.corpus import Corpus, CorpusSource, Limit
from exact_titan.packing.parts import PackOptions, Part, divide_into_parts

OPTIONS = PackOptions("t", "ab", "</s>", 8, "concat", 0.0, "text", 100)


def write(folder: Path, sizes: list[int]) -> Path:
    folder.mkdir()
    for number, size in enumerate(sizes):
        (folder / f"{number:02d}.txt").write_bytes(b"x" * size)
    return folder


def parts_of(corpus: Corpus, part_bytes: int) -> list[Part]:
    return divide_into_parts(corpus, [source.open("text") for source in corpus.sources], OPTIONS, part_bytes)


def sizes(parts: list[Part]) -> list[list[int]]:
    return [[piece.bytes for piece in part.pieces] for part in parts]


def test_whole_files_up_to_the_size_of_a_part(tmp_path: Path) -> None:
    folders = [write(tmp_path / "a", [4, 5, 3, 20]), write(tmp_path / "b", [2, 8, 1])]
    parts = parts_of(Corpus.of(folders), 10)
    assert sizes(parts) == [[4, 5], [3], [20], [2, 8], [1]]
    assert [part.number for part in parts] == [0, 1, 2, 3, 4]
    assert sizes(parts_of(Corpus.of(folders), 100)) == [[4, 5, 3, 20, 2, 8, 1]], "sources may share a part"


def test_a_part_of_a_limited_corpus_has_one_source(tmp_path: Path) -> None:
    write(tmp_path / "a", [4])
    write(tmp_path / "b", [5])
    sources = [CorpusSource(path=str(tmp_path / name)) for name in "ab"]
    assert sizes(parts_of(Corpus(sources), 100)) == [[4, 5]]
    assert sizes(parts_of(Corpus([sources[0], replace(sources[1], max_documents=1)]), 100)) == [[4], [5]]


@pytest.mark.parametrize("part_bytes", [1, 7, 40, 1000])
def test_a_token_file_is_divided_between_documents(tmp_path: Path, part_bytes: int) -> None:
    lengths = np.random.default_rng(0).integers(0, 9, 200).tolist()
    file = TokenizedFile(str(tmp_path), "corpus.ds", token_size=2)
    for length in lengths:
        file.write([1] * length, None)
    file.close()
    parts = parts_of(Corpus.of([tmp_path / "corpus.ds"]), part_bytes)
    pieces = [piece for part in parts for piece in part.pieces]
    assert [number for piece in pieces for number in range(piece.first, piece.last)] == list(range(200))
    assert [2 * sum(lengths[piece.first : piece.last]) for piece in pieces] == [piece.bytes for piece in pieces]
    assert max(piece.bytes for piece in pieces) < part_bytes + 2 * 8


def test_the_key_depends_on_all_inputs_of_the_result(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", [4, 5])
    (part,) = parts_of(Corpus.of([folder]), 100)
    assert part.key == replace(part, number=7).key, "the number of the part does not matter"
    selected = CorpusSource(path=str(folder), name="a", weight=Fraction(1), max_tokens=5, max_documents=5)
    assert part.key == replace(part, sources={0: selected}).key, "the caps and the weight of the source do not matter"
    others = [
        replace(part, limit=Limit(tokens=3)),
        replace(part, pieces=part.pieces[:1]),
        replace(part, options=replace(OPTIONS, policy="best_fit")),
        replace(part, options=replace(OPTIONS, tokenizer_sha256="cd")),
        replace(part, sources={0: CorpusSource(path=str(folder), max_document_tokens=5)}),
    ]
    (folder / "01.txt").write_bytes(b"other")
    others += parts_of(Corpus.of([folder]), 100)
    assert len({one.key for one in [part, *others]}) == 7


def test_a_file_of_two_sources(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", [4])
    with pytest.raises(
        InputError, match=r"a/00\.txt belongs to two sources, .*/a and .*/a/00\.txt: leave one source out$"
    ):
        parts_of(Corpus.of([folder, folder / "00.txt"]), 100)
