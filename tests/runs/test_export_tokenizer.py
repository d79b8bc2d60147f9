"""The tokenizer of an export gives the ids of tokenizer.json, and names its special tokens.

The tests run with the installed transformers. transformers 4.57 loads the same files with the same ids (tried by hand:
the classes of transformers 5 do not exist there, and extra_special_tokens must be an object).
"""

import json

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from exact_titan.errors import InputError
from exact_titan.runs.export_tokenizer import (
    SpecialIds,
    why_not_auto,
    with_special_ids,
    write_generation_config,
    write_tokenizer,
)

TEXT = "Call me Ishmael.  Some years ago — never mind\n\n\tfoo"
BOS, EOS = "<|begin_of_text|>", "<|end_of_text|>"


def tokenizer_json(folder, *, bos: bool = False, eos: bool = False, prefix_space: bool = False) -> Tokenizer:
    folder.mkdir(exist_ok=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(BOS, special=True), AddedToken(EOS, special=True)])
    if bos or eos:
        single = f"{BOS} $A" if bos else "$A"
        tokens = [(token, tokenizer.token_to_id(token)) for token in (BOS, EOS)]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{single} {EOS}" if eos else single, special_tokens=tokens
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


def write(tmp_path, config: dict | None, model_config: dict) -> SpecialIds:
    if config is not None:
        (tmp_path / "model/tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "out").mkdir()
    ids = write_tokenizer(tmp_path / "model", tmp_path / "out", model_config=model_config, max_positions=256)
    # AutoTokenizer chooses a class by the model's family if the files name no class.
    (tmp_path / "out/config.json").write_text(json.dumps({"model_type": "llama"}))
    return ids


@pytest.mark.parametrize("made_by", [None, "LlamaTokenizer", "Qwen2Tokenizer", "TokenizersBackend", "NoSuchTokenizer"])
@pytest.mark.parametrize("options", [{}, {"bos": True}, {"prefix_space": True}, {"bos": True, "eos": True}])
def test_the_ids_are_those_of_tokenizer_json(tmp_path, made_by, options):
    raw = tokenizer_json(tmp_path / "model", **options)
    config = None
    if made_by is not None:
        config = {"tokenizer_class": made_by, "add_bos_token": True, "add_eos_token": False, "backend": "tokenizers"}
        config["bos_token"] = BOS
    write(tmp_path, config, {"eos_token_id": raw.token_to_id(EOS)})
    loaded = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert loaded(TEXT).input_ids == raw.encode(TEXT).ids
    assert len(loaded) == raw.get_vocab_size()
    assert (loaded.eos_token, loaded.eos_token_id) == (EOS, raw.token_to_id(EOS))
    assert loaded.bos_token == (BOS if options.get("bos") or config else None)
    assert loaded.model_max_length == 256
    written = json.loads((tmp_path / "out/tokenizer_config.json").read_text())
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not {"add_bos_token", "add_eos_token", "backend"} & written.keys()


def test_values_of_the_model_are_kept(tmp_path):
    raw = tokenizer_json(tmp_path / "model")
    raw.add_special_tokens(["<pad>", "<tool>"])
    raw.save(str(tmp_path / "model/tokenizer.json"))
    given = {
        "eos_token": {"content": BOS, "__type": "AddedToken"},
        "pad_token": "<pad>",
        "model_max_length": 17,
        "chat_template": "{{ messages }}",
        "extra_special_tokens": ["<tool>"],
    }
    ids = write(tmp_path, given, {"eos_token_id": raw.token_to_id(EOS)})
    assert ids == SpecialIds(bos=None, eos=raw.token_to_id(BOS))
    loaded = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (loaded.eos_token, loaded.pad_token, loaded.model_max_length) == (BOS, "<pad>", 17)
    assert loaded.chat_template == "{{ messages }}"
    assert "<tool>" in loaded.all_special_tokens
    assert "extra_special_tokens" not in json.loads((tmp_path / "out/tokenizer_config.json").read_text())


def test_a_list_of_end_tokens_names_its_first_token(tmp_path):
    raw = tokenizer_json(tmp_path / "model")
    ids = write(tmp_path, None, {"eos_token_id": [raw.token_to_id(EOS), raw.token_to_id(BOS)]})
    assert ids == SpecialIds(bos=None, eos=raw.token_to_id(EOS))


def test_missing_ids_of_the_config_are_filled_and_given_ids_are_kept():
    ids = SpecialIds(bos=1, eos=2)
    assert with_special_ids({}, ids) == {"bos_token_id": 1, "eos_token_id": 2}
    given = {"bos_token_id": None, "eos_token_id": [7, 8]}
    assert with_special_ids(given, ids) == {"bos_token_id": 1, "eos_token_id": [7, 8]}


def test_the_generation_config_has_the_ids_of_the_config(tmp_path):
    write_generation_config(tmp_path, {"bos_token_id": 1, "eos_token_id": [7, 8], "hidden_size": 64})
    file = tmp_path / "generation_config.json"
    assert json.loads(file.read_text()) == {"bos_token_id": 1, "eos_token_id": [7, 8]}
    file.write_text("{}")
    write_generation_config(tmp_path, {"bos_token_id": 1})
    assert file.read_text() == "{}"


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_file_is_named(tmp_path, content):
    tokenizer_json(tmp_path / "model")
    (tmp_path / "model/tokenizer_config.json").write_text(content)
    with pytest.raises(InputError, match=r"tokenizer_config\.json is not a"):
        write(tmp_path, None, {})


def test_transformers_5_keeps_the_ids_of_a_qwen2_model_with_qwens_own_split(tmp_path):
    raw = tokenizer_json(tmp_path / "model")
    assert why_not_auto(tmp_path / "model", "llama") is None
    assert "load it with PreTrainedTokenizerFast" in why_not_auto(tmp_path / "model", "qwen2")
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.normalizer = normalizers.NFC()
    raw.save(str(tmp_path / "model/tokenizer.json"))
    assert why_not_auto(tmp_path / "model", "qwen2") is None
    write(tmp_path, {"tokenizer_class": "Qwen2Tokenizer"}, {"eos_token_id": raw.token_to_id(EOS)})
    (tmp_path / "out/config.json").write_text(json.dumps({"model_type": "qwen2"}))
    assert AutoTokenizer.from_pretrained(tmp_path / "out")(TEXT).input_ids == raw.encode(TEXT).ids
