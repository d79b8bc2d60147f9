import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from exact_titan.dataset.manifest import Manifest, SftRecord, ShardRecord, SourceRecord, SplitRecord
from exact_titan.documents.tokenizer_record import TokenizerRecord
from exact_titan.errors import InputError

MANIFEST = Manifest(
    sources=[SourceRecord("books", 2, 1000, "ab", 10, 500, {"no text": 1, "shorter than two tokens": 0})],
    tokenizer=TokenizerRecord("llama", "cd", 128256, "<|end_of_text|>", 128001),
    window=16,
    policy="concat",
    token_dtype="uint32",
    val_fraction=0.5,
    splits={
        "train": SplitRecord(1, 16, 16, 0, 5, [7, 9], [ShardRecord("train-00000.safetensors", 9, "ef", 1, 17, 1)], [5])
    },
)


def test_comes_back_as_it_was_written(tmp_path: Path) -> None:
    MANIFEST.write(tmp_path)
    assert Manifest.read(tmp_path) == MANIFEST
    content = json.loads((tmp_path / "manifest.json").read_text())
    assert content["format_version"] == 4
    assert content["fingerprint"] == MANIFEST.fingerprint


SFT = replace(MANIFEST, policy="best_fit", sft=SftRecord("dolly", "01", 12, ["rows.jsonl, line 3 (20 tokens)"]))
# A dataset from before datasets had parts.
OLD = replace(MANIFEST, splits={"train": replace(MANIFEST.splits["train"], parts=[])})


@pytest.mark.parametrize(("manifest", "version"), [(OLD, 1), (MANIFEST, 2), (SFT, 3), (MANIFEST, 4), (SFT, 4)])
def test_every_format_is_read(tmp_path: Path, manifest: Manifest, version: int) -> None:
    manifest = replace(manifest, format_version=version)
    manifest.write(tmp_path)
    content = json.loads((tmp_path / "manifest.json").read_text())
    assert content["format_version"] == version
    assert ("sft" in content) == (version >= 3)
    assert ("parts" in content["splits"]["train"]) == (version > 1)
    assert Manifest.read(tmp_path) == manifest
    assert content["fingerprint"] == manifest.fingerprint


def test_the_manifest_of_documents_has_not_changed() -> None:
    # The fingerprint of MANIFEST before format 3 existed.
    before = "bdc34aba4c9a265d29372a7082913d7ca38117136e106001755ef8e7242e5f40"
    assert replace(MANIFEST, format_version=2).fingerprint == before


CHANGES = [{"window": 17}, {"policy": "best_fit"}, {"sources": []}, {"val_fraction": 0.25}, {"token_dtype": "uint16"}]


def test_the_fingerprint_is_over_the_content() -> None:
    assert len(MANIFEST.fingerprint) == 64
    source, tokenizer, split = MANIFEST.sources[0], MANIFEST.tokenizer, MANIFEST.splits["train"]
    changed = [replace(MANIFEST, **change) for change in CHANGES]
    changed += [replace(MANIFEST, sources=[replace(source, **{key: "x"})]) for key in ("sha256", "contents", "tokens")]
    changed += [replace(MANIFEST, tokenizer=replace(tokenizer, **{key: "x"})) for key in ("sha256", "eos_id")]
    changed += [replace(MANIFEST, splits={"train": replace(split, shards=[replace(split.shards[0], sha256="x")])}), SFT]
    assert len({manifest.fingerprint for manifest in [MANIFEST, *changed]}) == len(changed) + 1


@pytest.mark.parametrize("version", [3, 4])
def test_only_older_fingerprints_are_over_names(version: int) -> None:
    sft = replace(SFT, format_version=version)
    assert sft.sft is not None
    renamed = [
        replace(sft, sources=[replace(sft.sources[0], name="copy")]),
        replace(sft, tokenizer=replace(sft.tokenizer, name="copy")),
        replace(sft, sft=replace(sft.sft, too_long=["copy.jsonl, line 3 (20 tokens)"])),
        replace(sft, sources=[replace(sft.sources[0], dropped={"no text, in other words": 1})]),
        replace(sft, sources=[replace(sft.sources[0], remarks={"a remark": 1})]),
    ]
    assert len({manifest.fingerprint for manifest in [sft, *renamed]}) == (6 if version == 3 else 1)
    passed_over = replace(sft, sources=[replace(sft.sources[0], passed_over={"an empty file": 1})])
    assert passed_over.fingerprint == sft.fingerprint


def _set(*keys: str | int, to: object) -> Callable[[dict], None]:
    def change(content: dict) -> None:
        for key in keys[:-1]:
            content = content[key]
        if to is None:
            del content[keys[-1]]
        else:
            content[keys[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("format_version", to=5), "format_version is 5, this version of exact_titan reads 1, 2, 3, 4"),
        (_set("format_version", to=3), "the fingerprint does not match"),
        (_set("sft", to=None), "key 'sft' is missing"),
        (_set("format_version", to=True), "format_version is True"),
        (_set("format_version", to=None), "format_version is None"),
        (_set("window", to=None), "key 'window' is missing"),
        (_set("window", to="16"), "key 'window' is '16': it must be an integer"),
        (_set("window", to=True), "key 'window' is True: it must be an integer"),
        (_set("splits", to=[]), r"key 'splits' is \[\]: it must be an object"),
        (_set("tokenizer", "eos_id", to=None), r"key 'tokenizer\.eos_id' is missing"),
        (_set("sources", 0, "name", to=3), r"key 'sources\[0\]\.name' is 3: it must be a string"),
        (
            _set("splits", "train", "bucket_counts", 1, to=0.5),
            r"key 'splits\.train\.bucket_counts\[1\]' is .*: it must be an integer",
        ),
        (_set("splits", "train", "shards", to={}), r"key 'splits\.train\.shards' is {}: it must be a list"),
        (_set("splits", "train", "windows", to=2), "the fingerprint does not match"),
        (_set("window", to=-1), r"key 'window' is -1: it must be from 0 to 2\^63 - 1"),
        (_set("splits", "train", "bucket_counts", 0, to=2**63), r"key 'splits\.train\.bucket_counts\[0\]' is 9223"),
        (_set("fingerprint", to=None), "the fingerprint does not match"),
        (_set("extra", to=1), "the fingerprint does not match"),
    ],
)
def test_what_was_changed_is_named(tmp_path: Path, change: Callable[[dict], None], message: str) -> None:
    MANIFEST.write(tmp_path)
    file = tmp_path / "manifest.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        Manifest.read(tmp_path)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        Manifest.read(tmp_path / "none")


def test_a_folder_without_manifest(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not a packed dataset: it has no manifest\.json"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "\udcff"])
def test_not_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text, errors="surrogateescape")
    with pytest.raises(InputError, match="is not "):
        Manifest.read(tmp_path)


def test_parts_that_are_not_the_split(tmp_path: Path) -> None:
    record = replace(MANIFEST.splits["train"], parts=[2, 10**12])
    replace(MANIFEST, splits={"train": record}).write(tmp_path)
    with pytest.raises(InputError, match=r"the parts of train have 1000000000002 documents, and the split has 5"):
        Manifest.read(tmp_path)
