"""Tiny random models with a word-level tokenizer on the disk, and prompts for them."""

import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from exact_titan.evaluation.examples import Example
from exact_titan.evaluation.prompt_sets import PromptRecipe, write_prompts
from exact_titan.evaluation.prompt_tokenizer import PromptTokenizer

WORDS = [f"w{number}" for number in range(90)]
END = "<end>"
FAMILIES = {"llama": LlamaConfig, "qwen2": Qwen2Config}


def write_model(folder: Path, family: str = "llama", *, seed: int = 0, positions: int = 512, end: int = 0) -> Path:
    """Write a random model of two layers and its tokenizer. A token is a word with the space before the word."""
    torch.manual_seed(seed)
    vocabulary = {END: 0, "Ġ": 1, **{word: 2 + k for k, word in enumerate(WORDS)}}
    vocabulary |= {f"Ġ{word}": len(vocabulary) + k for k, word in enumerate(WORDS)}
    config = FAMILIES[family](
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        eos_token_id=end,
        bos_token_id=None,
        rope_theta=10_000.0,
        attn_implementation="eager",
    )
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=END))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(" ", "merged_with_next"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": END}))
    return folder


def text(words: int, seed: int) -> str:
    """Return random words."""
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def example(name: str, prompt: str, *, room: int = 8, tokens: int | None = None, **fields) -> Example:
    """Return an example whose token number is its number of words."""
    count = len(prompt.split()) if tokens is None else tokens
    return Example(name, "words", "near", prompt, count, room, 256, **fields)


def write_set(folder: Path, examples: list[Example], model: Path) -> Path:
    """Write a prompt set for the tokenizer of a model."""
    recipe = PromptRecipe("words", 1, ("near",), 256, 4, 0, PromptTokenizer(model).sha256, "plain", {})
    return write_prompts(folder, recipe, examples)
