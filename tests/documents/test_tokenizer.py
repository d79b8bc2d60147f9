import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from exact_titan.documents.tokenizer import DocumentTokenizer
from exact_titan.errors import InputError

pytest_plugins = ["tests.text_fixtures"]

BOS, END = 0, 1


def test_begins_and_ends_as_the_tokenizer_says(bpe_tokenizer: Path) -> None:
    tokenizer = DocumentTokenizer(bpe_tokenizer)
    plain = Tokenizer.from_file(str(bpe_tokenizer / "tokenizer.json"))
    texts = ["The quick fox", "東京", ""]
    ids = [document.tolist() for document in tokenizer.encode(texts)]
    assert ids[0] == [BOS, *plain.encode("The quick fox", add_special_tokens=False).ids, END]
    assert ids[2] == [BOS, END]
    assert plain.decode(ids[1]) == "東京"
    assert tokenizer.record.eos_id == END
    assert tokenizer.record.vocab_size == 1 + max(plain.get_vocab().values())


def test_stored_truncation_and_padding_are_off(bpe_tokenizer: Path, tmp_path: Path) -> None:
    stored = Tokenizer.from_file(str(bpe_tokenizer / "tokenizer.json"))
    stored.enable_truncation(4)
    stored.enable_padding(length=64)
    stored.save(str(tmp_path / "tokenizer.json"))
    found, expected = (
        DocumentTokenizer(folder, "<end>").encode(["fox " * 99, "a"]) for folder in (tmp_path, bpe_tokenizer)
    )
    for left, right in zip(found, expected, strict=True):
        np.testing.assert_array_equal(left, right)


def test_smallest_type_that_holds_the_ids(bpe_tokenizer: Path, tmp_path: Path) -> None:
    content = json.loads((bpe_tokenizer / "tokenizer.json").read_text())
    assert DocumentTokenizer(bpe_tokenizer).dtype == np.uint16
    for top, dtype in ((2**16 - 1, np.uint16), (2**16, np.uint32)):
        added = content | {
            "model": {"type": "WordLevel", "vocab": {"<bos>": 0, "<end>": 1, "top": top}, "unk_token": "<bos>"}
        }
        (tmp_path / "tokenizer.json").write_text(json.dumps(added))
        tokenizer = DocumentTokenizer(tmp_path, "<end>")
        assert tokenizer.dtype == dtype
        assert tokenizer.record.vocab_size == top + 1
        assert tokenizer.encode(["top"])[0].tolist() == [BOS, top, END]


def test_where_the_end_token_comes_from(bpe_tokenizer: Path, word_tokenizer: Path, tmp_path: Path) -> None:
    assert DocumentTokenizer(bpe_tokenizer, "<bos>").record.eos_id == BOS
    assert DocumentTokenizer(word_tokenizer / "tokenizer.json").record.eos_id == 0, "</s> is a known end-of-text token"
    shutil.copy(bpe_tokenizer / "tokenizer.json", tmp_path)
    with pytest.raises(InputError, match="names no end-of-text token: name it with --eos-token"):
        DocumentTokenizer(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    config.write_text('{"eos_token": "<end>"}')
    assert DocumentTokenizer(tmp_path / "tokenizer.json").record.eos_id == END
    config.write_text('{"eos_token": "<none>"}')
    with pytest.raises(InputError, match="eos_token '<none>' is not in the vocabulary: see --eos-token"):
        DocumentTokenizer(tmp_path)
    config.write_text("{")
    with pytest.raises(InputError, match="is not a JSON object"):
        DocumentTokenizer(tmp_path)
    config.write_text('{"eos_token": "<end>"}')
    chat = json.loads((bpe_tokenizer / "tokenizer.json").read_text())
    chat["added_tokens"].append(chat["added_tokens"][0] | {"id": 400, "content": "<|endoftext|>"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(chat))
    assert DocumentTokenizer(tmp_path).record.eos_token == "<|endoftext|>", "<end> may end a chat turn"
    with pytest.raises(InputError, match="--eos-token '<none>' is not in the vocabulary"):
        DocumentTokenizer(bpe_tokenizer, "<none>")


def test_what_does_not_load_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--tokenizer .*none: no such file or folder"):
        DocumentTokenizer(tmp_path / "none")
    with pytest.raises(InputError, match=r"the folder has no tokenizer\.json"):
        DocumentTokenizer(tmp_path)
    for content in (b"{}", b"\xff", b"[1]"):
        (tmp_path / "tokenizer.json").write_bytes(content)
        with pytest.raises(InputError, match=r"tokenizer\.json is not a Hugging Face tokenizer\.json"):
            DocumentTokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(InputError, match=r"tokenizer\.json is a pointer of Git LFS, not the file: run `git lfs pull`"):
        DocumentTokenizer(tmp_path)


def test_the_copy_works_in_torchtitan(bpe_tokenizer: Path, tmp_path: Path) -> None:
    from torchtitan.components.tokenizer import HuggingFaceTokenizer

    DocumentTokenizer(bpe_tokenizer).save(tmp_path / "tokenizer")
    loaded = HuggingFaceTokenizer(HuggingFaceTokenizer.Config(), tokenizer_path=str(tmp_path / "tokenizer"))
    document = DocumentTokenizer(bpe_tokenizer).encode(["The quick fox"])[0].tolist()
    assert loaded.encode("The quick fox", add_bos=True, add_eos=True) == document
    assert loaded.eos_id == END


@pytest.mark.parametrize(
    "model",
    [
        models.Unigram([("</s>", 0.0), ("▁", -2.0), *((letter, -3.0) for letter in "abcf")]),
        models.WordLevel({"</s>": 0, "caf": 1}, unk_token="<unk>"),
    ],
)
def test_a_tokenizer_without_an_unknown_token(tmp_path: Path, model: models.Model) -> None:
    plain = Tokenizer(model)
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    plain.add_special_tokens(["</s>"])
    plain.save(str(tmp_path / "tokenizer.json"))
    tokenizer = DocumentTokenizer(tmp_path)
    assert len(tokenizer.encode(["caf"])[0]) > 1
    message = (
        r"tokenizer\.json cannot encode the document that begins with 'caf é' \(.*\): give a --tokenizer with an unk"
    )
    with pytest.raises(InputError, match=message):
        tokenizer.encode(["caf", "caf é", "caf"])


def test_files_of_a_tokenizer_that_cannot_be_used(bpe_tokenizer: Path, tmp_path: Path) -> None:
    content = (bpe_tokenizer / "tokenizer.json").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(b"\xef\xbb\xbf" + content)
    config = tmp_path / "tokenizer_config.json"
    for token in (["<end>"], 1, {"content": ["<end>"]}):
        config.write_text(json.dumps({"eos_token": token}))
        with pytest.raises(InputError, match=r"eos_token is .*, not a text: name the token with --eos-token"):
            DocumentTokenizer(tmp_path)
    config.write_text('\ufeff{"eos_token": "<end>"}')
    assert DocumentTokenizer(tmp_path).record.eos_id == END
    with pytest.raises(
        InputError, match=r"no such file or folder: --tokenizer takes a folder: hf download meta-llama/L"
    ):
        DocumentTokenizer(Path("meta-llama/Llama-3.1-8B"))


def test_dropout_is_off(bpe_tokenizer: Path, tmp_path: Path) -> None:
    content = json.loads((bpe_tokenizer / "tokenizer.json").read_text())
    content["model"]["dropout"] = 0.5
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    text = "The quick brown fox jumps over the lazy dog. " * 9
    (found,), (expected,) = (DocumentTokenizer(folder, "<end>").encode([text]) for folder in (tmp_path, bpe_tokenizer))
    np.testing.assert_array_equal(found, expected)


BROKEN_PARTS = {
    "panics while it loads": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AA=="}},
    "panics while it encodes": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "a template without its token": {
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[X]", "type_id": 0}}],
            "pair": [],
            "special_tokens": {},
        }
    },
    "an id beyond the vocabulary": {
        "post_processor": {
            "type": "RobertaProcessing",
            "sep": ["</s>", 70000],
            "cls": ["<s>", 0],
            "trim_offsets": True,
            "add_prefix_space": True,
        }
    },
    "merges without their token": {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "</s>": 2}, "merges": ["a b"]}},
}


@pytest.mark.parametrize("name", BROKEN_PARTS)
def test_a_broken_tokenizer_is_one_line(tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    content = {
        "version": "1.0",
        "model": {"type": "WordLevel", "vocab": {"a": 0, "</s>": 1}, "unk_token": "a"},
        "added_tokens": [],
    } | BROKEN_PARTS[name]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"^.*tokenizer\.json is (broken|not a Hugging Face tokenizer\.json).*$"):
        DocumentTokenizer(tmp_path)
    assert capfd.readouterr().err == "", "the library's report of a panic"


def test_a_deep_or_large_tokenizer_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "tokenizer.json"
    for content in (
        '{"model": ' + "[" * 200_000,
        '{"model": {"type": "WordLevel", "vocab": ' + "{" * 200_000,
        "\xff" * 9,
    ):
        file.write_text(content, encoding="latin-1")
        with pytest.raises(InputError, match=r"^.*tokenizer\.json is not a Hugging Face tokenizer\.json \(.*\): copy"):
            DocumentTokenizer(tmp_path)
    monkeypatch.setattr("exact_titan.documents.tokenizer.LARGEST_BYTES", 8)
    with pytest.raises(InputError, match=r"tokenizer\.json has more than 8 bytes"):
        DocumentTokenizer(tmp_path)
