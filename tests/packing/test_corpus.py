from fractions import Fraction
from pathlib import Path

import pytest

from exact_titan.errors import InputError
from exact_titan.packing.corpus import Corpus, CorpusSource, read_corpus
from tests.support import ROOT

CORPORA = ROOT / "train_configs" / "corpora"


def test_every_key(tmp_path: Path) -> None:
    file = tmp_path / "corpus.toml"
    file.write_text(
        """
        weigh = "documents"
        documents = 1000
        [[source]]
        path = "hf://datasets/HuggingFaceFW/fineweb-edu/sample/10BT"
        name = "edu"
        weight = 0.1
        files = "*.parquet"
        text_key = "content"
        min_document_tokens = 10
        max_document_tokens = 100
        max_tokens = 5000
        max_documents = 500
        split = "val"
        [[source]]
        path = "local"
        weight = 3
        """
    )
    corpus = read_corpus(file)
    assert corpus.sources[0] == CorpusSource(
        path="hf://datasets/HuggingFaceFW/fineweb-edu/sample/10BT",
        name="edu",
        weight=Fraction(1, 10),
        files="*.parquet",
        text_key="content",
        min_document_tokens=10,
        max_document_tokens=100,
        max_tokens=5000,
        max_documents=500,
        split="val",
    )
    assert (corpus.unit, corpus.total, corpus.is_mix) == ("documents", 1000, True)
    assert [corpus.share(index) for index in (0, 1)] == [Fraction(1, 31), Fraction(30, 31)]
    mirrored = corpus.mirrored(tmp_path / "hub")
    assert [source.path for source in mirrored.sources] == [
        f"{tmp_path}/hub/HuggingFaceFW/fineweb-edu/sample/10BT",
        "local",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no source given"),
        ("[[source", "is not TOML"),
        ("source = 1", r"source is no list of tables: begin each source with \[\[source\]\]"),
        ('weigh = "bytes"', "weigh is 'bytes': choose one of tokens, documents"),
        ("size = 3", r"there is no key 'size': the known keys are weigh, tokens and \[\[source\]\]"),
        ("[[source]]\nweight = 1", "source 1 has no path"),
        (
            '[[source]]\npath = "a"\nwieght = 1',
            "source 1: there is no key 'wieght': the known keys are path, name, weight, files",
        ),
        ('[[source]]\npath = ""', "source 1: path is '': it must be a text"),
        ('[[source]]\npath = "a"\nweight = -1', "source 1: weight is -1: it must be a number above 0"),
        ('[[source]]\npath = "a"\nweight = nan', "source 1: weight is nan: it must be a number"),
        ('[[source]]\npath = "a"\nweight = true', "source 1: weight is True"),
        ('[[source]]\npath = "a"\nweight = 0', "the weights sum to 0: give the sources weights above 0"),
        ('[[source]]\npath = "a"\nweight = 0\n[[source]]\npath = "b"\nweight = 1', "source a has the weight 0"),
        ('[[source]]\npath = "a"\nweight = 1\n[[source]]\npath = "b"', "source b has no weight"),
        ('[[source]]\npath = "a"\n[[source]]\npath = "./a"', "source a appears twice: name it once"),
        ('[[source]]\npath = "s3://b/a"\n[[source]]\npath = "s3://b/a/"', "source s3://b/a appears twice"),
        ('tokens = 5\n[[source]]\npath = "a"', "tokens is the size of a mix, but no source has a weight"),
        ('tokens = 0\n[[source]]\npath = "a"\nweight = 1', "tokens is 0: it must be an integer above 0"),
        ('[[source]]\npath = "a"\nmax_tokens = 1.5', "source 1: max_tokens is 1.5: it must be an integer above 0"),
        ('[[source]]\npath = "a"\nsplit = "test"', "source 1: split is 'test': choose one of train, val"),
        (
            '[[source]]\npath = "a"\nmin_document_tokens = 9\nmax_document_tokens = 8',
            "source 1: min_document_tokens is 9, more than max_document_tokens, 8",
        ),
    ],
)
def test_an_invalid_corpus_is_named(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "corpus.toml"
    file.write_text(content)
    with pytest.raises(InputError, match=message) as error:
        Corpus.of([file])
    assert str(error.value).startswith(str(file))
    assert "\n" not in str(error.value)


def test_sources_of_the_command_line() -> None:
    assert [source.path for source in Corpus.of(["a", "s3://b/c"]).sources] == ["a", "s3://b/c"]
    with pytest.raises(InputError, match="a corpus TOML lists all sources, give it alone"):
        Corpus.of(["a", "b.toml"])
    with pytest.raises(InputError, match=r"none\.toml cannot be read: No such file"):
        Corpus.of(["none.toml"])
    with pytest.raises(InputError, match=r"s3://b/c\.ds: token files are read from the disk only"):
        Corpus.of(["s3://b/c.ds"]).sources[0].open("text")


def test_an_empty_path_is_not_the_working_directory() -> None:
    with pytest.raises(InputError, match="a source is an empty text: name a file or folder"):
        Corpus.of(["a.jsonl", ""])


def test_the_papers_mixes() -> None:
    shares = {
        file.stem: [corpus.share(index) for index in range(len(corpus.sources))]
        for file in CORPORA.glob("*.toml")
        for corpus in [read_corpus(file)]
    }
    assert shares == {
        "fineweb-edu": [1],
        "fineweb-edu_slimpajama_openwebmath-6-24-32": [Fraction(weight, 62) for weight in (6, 24, 32)],
        "fineweb-edu_slimpajama_openwebmath-1-3-6": [Fraction(weight, 10) for weight in (1, 3, 6)],
    }
