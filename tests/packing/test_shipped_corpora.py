import random
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from exact_titan.cli import main
from exact_titan.dataset import Manifest
from tests.packing.conftest import Documents
from tests.packing.test_corpus import CORPORA


def write_hub(folder: Path) -> None:
    """Write small copies of the mixes' datasets in the layout of `hf download --local-dir`."""
    draw = random.Random(0)
    for name, files in (
        ("HuggingFaceFW/fineweb-edu/sample/10BT", ["000_00000.parquet", "001_00000.parquet"]),
        ("DKYoon/SlimPajama-6B/data", ["train-00000-of-00002-ab.parquet", "train-00001-of-00002-cd.parquet"]),
        ("DKYoon/SlimPajama-6B/data", ["test-00000-of-00001-ef.parquet"]),
        ("open-web-math/open-web-math/data", ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]),
    ):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for file in files:
            # Only the test split has the word 299: the test finds documents of this split.
            words = ["299"] if file.startswith("test") else [str(word) for word in range(1, 299)]
            texts = [" ".join(draw.choices(words, k=draw.randrange(5, 60))) for _ in range(300)]
            pyarrow.parquet.write_table(pyarrow.table({"text": texts, "meta": texts}), folder / name / file)


@pytest.mark.parametrize(
    ("corpus", "weights"),
    [
        ("fineweb-edu", [1]),
        ("fineweb-edu_slimpajama_openwebmath-6-24-32", [6, 24, 32]),
        ("fineweb-edu_slimpajama_openwebmath-1-3-6", [1, 3, 6]),
    ],
)
def test_the_papers_mixes_from_local_folders(
    documents: Documents, capfd: pytest.CaptureFixture[str], corpus: str, weights: list[int]
) -> None:
    write_hub(documents.folder / "hub")
    out = documents.folder / "out"
    command = ["pack", str(CORPORA / f"{corpus}.toml"), "--mirror", str(documents.folder / "hub"), "--out", str(out)]
    assert main([*command, "--tokenizer", str(documents.folder / "tokenizer.json"), "--seq-len", "128"]) == 0
    manifest = Manifest.read(out)
    tokens = [source.tokens for source in manifest.sources]
    for found, weight in zip(tokens, weights, strict=True):
        assert abs(found - sum(tokens) * weight / sum(weights)) < 60
    assert [source.name for source in manifest.sources] == ["fineweb-edu", "slimpajama-6b", "open-web-math"][
        : len(weights)
    ]
    shown = capfd.readouterr().out
    for source in manifest.sources:
        assert f"{100 * source.tokens / sum(tokens):6.2f} %   {source.name}: {source.tokens:,} tokens" in shown
    assert 299 not in [int(token) for token in set(read_tokens(out))]


def read_tokens(folder: Path) -> list[int]:
    """Return all stored token ids."""
    from exact_titan.dataset.shards import Shard

    return [token for file in folder.glob("*.safetensors") for token in Shard(file).tokens.tolist()]
