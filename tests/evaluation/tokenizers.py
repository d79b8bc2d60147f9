"""Small tokenizers for the tests of the evaluation."""

from pathlib import Path

from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from exact_titan.evaluation.prompt_tokenizer import PromptTokenizer, Template


def letters_tokenizer(folder: Path, template: Template = "plain") -> PromptTokenizer:
    """Make a tokenizer of words of up to four letters, single digits and signs. A space belongs to the next word.

    Every text has an id for each piece, because unknown pieces get the id of ``<unk>``. The special token is ``</s>``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1}, unk_token="<unk>"))
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?[A-Za-z]{1,4}| ?\d|\s+|."), "isolated")
    tokenizer.save(str(folder / "tokenizer.json"))
    return PromptTokenizer(folder, template)
