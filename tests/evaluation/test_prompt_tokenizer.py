import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from exact_titan.documents.templates import dolly_prompt
from exact_titan.errors import InputError
from exact_titan.evaluation.prompt_tokenizer import PromptTokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A byte tokenizer that adds BOS, as Llama 3 does."""
    words = {chr(byte): byte - 32 for byte in range(32, 127)}
    tokenizer = Tokenizer(models.WordLevel({**words, "<|begin|>": 95, "?": 96}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.add_special_tokens(["<|begin|>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 95)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": {"content": "<|begin|>"}}))
    return tmp_path


def test_a_prompt_has_one_bos(folder: Path) -> None:
    tokenizer = PromptTokenizer(folder)
    assert tokenizer.encode("ab") == [95, 65, 66]
    assert tokenizer.encode("<|begin|>ab") == [95, 65, 66]
    assert (tokenizer.count("ab"), tokenizer.counts(["ab", ""])) == (3, [2, 0])
    assert tokenizer.decode([95, 65, 66]) in ("ab", "a b")


def test_the_space_before_an_answer_belongs_to_the_answer(folder: Path) -> None:
    tokenizer = PromptTokenizer(folder)
    assert tokenizer.split("a: ", "b") == tokenizer.split("a:", " b") == ([95, 65, 26], [0, 66])


def test_the_letters_of_every_token_are_known(folder: Path) -> None:
    assert PromptTokenizer(folder).spans("a b") == [(0, 1), (1, 2), (2, 3)]


def test_letters_that_spell_a_special_token_are_found(folder: Path) -> None:
    tokenizer = PromptTokenizer(folder)
    assert tokenizer.special_token_in("x <|begin|> y") == "<|begin|>"
    assert tokenizer.special_token_in("x <|begin y") is None


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no tokenizer\.json"):
        PromptTokenizer(tmp_path)


def test_the_template_stands_around_the_question(folder: Path) -> None:
    assert PromptTokenizer(folder).wrap("Where?", " It is in") == "Where? It is in"
    dolly = PromptTokenizer(folder, "dolly").wrap("Where?", " It is in")
    assert dolly == f"{dolly_prompt('Where?')}It is in"
    assert dolly.endswith("### Instruction:\nWhere?\n\n### Response:\nIt is in")
    with pytest.raises(InputError, match="has no chat template"):
        PromptTokenizer(folder, "chat")
    (folder / "chat_template.jinja").write_text("<user>{{ messages[0].content }}<model>")
    chat = PromptTokenizer(folder, "chat")
    assert chat.wrap("Where?", " It is in") == "<user>Where?<model> It is in"
    assert chat.wrap("Where?") == "<user>Where?<model>"


def test_a_chat_template_writes_all_special_tokens(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% for message in messages %}[{{ message.content }}]{% endfor %}")
    chat, plain = PromptTokenizer(folder, "chat"), PromptTokenizer(folder)
    prompt = chat.wrap("a")
    assert prompt == "[a]"
    # transformers.apply_chat_template and pack --sft add no special tokens either.
    assert chat.encode(prompt) == plain.encode(prompt, special_tokens=False) == [59, 65, 61]
    assert chat.split(prompt, "b") == ([59, 65, 61], [66])
    assert plain.encode(prompt) == [95, 59, 65, 61]
