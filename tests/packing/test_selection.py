from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exact_titan.dataset import Manifest, PackedDataset
from exact_titan.dataset.verify import verify
from exact_titan.errors import InputError
from exact_titan.packing import Corpus, CorpusSource, pack
from tests.packing.conftest import Documents, finished

pytest_plugins = ["tests.text_fixtures"]


def first_documents(lengths: list[int], tokens: int | None, documents: int | None) -> list[int]:
    """Select the first documents that fit both limits, one at a time."""
    selected: list[int] = []
    for length in lengths:
        too_long = tokens is not None and sum(selected) + length > tokens
        if too_long or (documents is not None and len(selected) == documents):
            break
        selected.append(length)
    return selected


def reference(corpus: Corpus, lengths: list[list[int]]) -> list[list[int]]:
    """Select the documents of each source of a corpus, by the definition."""
    selected = []
    for source, all_lengths in zip(corpus.sources, lengths, strict=True):
        shortest, longest = source.min_document_tokens or 0, source.max_document_tokens or 10**9
        kept = [length for length in all_lengths if length >= 2 and shortest <= length <= longest]
        selected.append(first_documents(kept, source.max_tokens, source.max_documents))
    if not corpus.is_mix:
        return selected
    measure: Callable[[list[int]], int] = sum if corpus.unit == "tokens" else len
    shares = [corpus.share(index) for index in range(len(lengths))]
    whole = corpus.total or min(measure(one) / share for one, share in zip(selected, shares, strict=True))
    limits = [int(share * whole) for share in shares]
    if corpus.unit == "tokens":
        return [first_documents(one, limit, None) for one, limit in zip(selected, limits, strict=True)]
    return [one[:limit] for one, limit in zip(selected, limits, strict=True)]


def optional(values: st.SearchStrategy[int]) -> st.SearchStrategy[int | None]:
    return st.none() | values


@settings(deadline=None, max_examples=15)
@given(
    lengths=st.lists(st.lists(st.integers(1, 30), min_size=3, max_size=30), min_size=1, max_size=3),
    weights=optional(st.lists(st.integers(1, 9), min_size=3, max_size=3)),  # type: ignore[arg-type]
    unit=st.sampled_from(["tokens", "documents"]),
    shortest=optional(st.integers(1, 10)),
    longest=optional(st.integers(15, 30)),
    most_tokens=optional(st.integers(1, 400)),
    most_documents=optional(st.integers(1, 20)),
    files=st.integers(1, 4),
)
def test_agrees_with_the_definition(
    tmp_path_factory: pytest.TempPathFactory,
    word_tokenizer: Path,
    write_jsonl: Callable[[Path, list[str]], Path],
    lengths: list[list[int]],
    weights: list[int] | None,
    unit: str,
    shortest: int | None,
    longest: int | None,
    most_tokens: int | None,
    most_documents: int | None,
    files: int,
) -> None:
    folder = tmp_path_factory.mktemp("mix")
    sources = []
    for index, source_lengths in enumerate(lengths):
        (folder / str(index)).mkdir()
        texts = [" ".join(["7"] * (length - 1)) or "</s>" for length in source_lengths]
        for file in range(files):
            size = -(-len(texts) // files)
            write_jsonl(folder / str(index) / f"{file}.jsonl", texts[file * size : (file + 1) * size])
        sources.append(
            CorpusSource(
                path=str(folder / str(index)),
                weight=Fraction(weights[index]) if weights else None,
                min_document_tokens=shortest,
                max_document_tokens=longest,
                max_tokens=most_tokens if index == 0 else None,
                max_documents=most_documents,
            )
        )
    corpus = Corpus(sources, unit)
    expected = reference(corpus, lengths)
    options = {"tokenizer": word_tokenizer, "seq_len": 8, "out": folder / "out", "part_bytes": 60}
    if not all(expected):
        with pytest.raises(InputError, match=r"source .* gives no document: "):
            pack(corpus, **options)
        return
    manifest = pack(corpus, **options)
    found = [(source.documents, source.tokens) for source in manifest.sources]
    assert found == [(len(one), sum(one)) for one in expected]
    assert list(verify(folder / "out"))
    assert PackedDataset(folder / "out").record.tokens == sum(length - 1 for one in expected for length in one)


def mix(documents: Documents, total: int | None, **caps: int) -> Corpus:
    for name, files in (("web", 12), ("math", 3)):
        if name not in documents.ids:
            documents.write(name, files=files, documents=20, longest=40)
    web = CorpusSource(path=str(documents.folder / "web"), weight=Fraction(3), **caps)
    math = CorpusSource(path=str(documents.folder / "math"), weight=Fraction(1))
    return Corpus([web, math], total=total, shown="mix.toml")


def pack_mix(documents: Documents, corpus: Corpus, out: str = "out") -> Manifest:
    options = {"tokenizer": documents.folder / "tokenizer.json", "seq_len": 64, "part_bytes": 1000}
    return pack(corpus, out=documents.folder / out, **options)


def test_a_mix_of_a_size_has_its_shares_to_within_a_document(documents: Documents) -> None:
    manifest = pack_mix(documents, mix(documents, 1200))
    web, math = manifest.sources
    assert 900 - 40 < web.tokens <= 900
    assert 300 - 40 < math.tokens <= 300
    assert (web.files, math.files) < (12, 3), "files beyond the share are not read"


def test_the_largest_mix_empties_one_source(documents: Documents) -> None:
    manifest = pack_mix(documents, mix(documents, None))
    total = {name: sum(map(len, ids)) for name, ids in documents.ids.items()}
    assert total["web"] > 3 * total["math"]
    web, math = manifest.sources
    assert math.tokens == total["math"]
    assert 0 <= 3 * total["math"] - web.tokens < 40


def test_a_source_that_runs_out_is_named_with_the_shortfall(documents: Documents) -> None:
    mix(documents, None)
    total = sum(map(len, documents.ids["math"]))
    what = rf"^mix\.toml: source .*/math runs out before its share: it has {total:,} of {total + 10:,} tokens, 10 are"
    way_out = "missing: give it more documents or a smaller weight, or set tokens to"
    with pytest.raises(InputError, match=f"{what} {way_out}"):
        pack_mix(documents, mix(documents, 4 * total + 40))
    assert not (documents.folder / "out").exists()
    # The proposed size works, and the finished parts are used again.
    kept = finished(documents.folder)
    assert pack_mix(documents, mix(documents, 4 * total)).sources[1].tokens == total
    selected = kept.keys() & {file.stat().st_ino for file in (documents.folder / "out").glob("*.safetensors")}
    assert len(selected) >= len(Manifest.read(documents.folder / "out").splits["train"].shards) - 1, (
        "only the cut part is packed again"
    )


def test_a_cap_below_the_share(documents: Documents) -> None:
    message = r"source .*/web is capped at 500 tokens, its share of 1,200 is 900: raise max_tokens, or lower its weight"
    with pytest.raises(InputError, match=message):
        pack_mix(documents, mix(documents, 1200, max_tokens=500))


def test_a_source_with_a_split_goes_to_the_split(tmp_path: Path, documents: Documents) -> None:
    sources = [
        CorpusSource(path=str(documents.write(name, files=2, documents=20, longest=9)), split=split)
        for name, split in (("a", "val"), ("b", "train"), ("c", None))
    ]
    tokens = {name: sum(len(ids) - 1 for ids in documents.ids[name]) for name in "abc"}
    packed = {}
    for fraction in (0.0, 0.5):
        manifest = pack(
            Corpus(sources),
            tokenizer=tmp_path / "tokenizer.json",
            seq_len=8,
            val_fraction=fraction,
            out=tmp_path / str(fraction),
        )
        packed[fraction] = {split: record.targets for split, record in manifest.splits.items()}
        assert list(verify(tmp_path / str(fraction)))
    assert packed[0.0] == {"train": tokens["b"] + tokens["c"], "val": tokens["a"]}
    # The validation fraction divides only the source without a split.
    assert tokens["b"] < packed[0.5]["train"] < tokens["b"] + tokens["c"]
    assert sum(packed[0.5].values()) == sum(tokens.values())
