"""The tokenizer and the token ids of an export. transformers 4 and 5 load the same tokenizer from these files.

Both versions build the tokenizer from ``tokenizer.json`` alone if ``tokenizer_class`` is ``PreTrainedTokenizerFast``.
Other classes build some parts again: the classes of transformers 5 do not exist in transformers 4, and without a class
transformers chooses a class by the model's family. Both can change the ids.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from exact_titan.documents.tokenizer import load_tokenizer
from exact_titan.errors import InputError
from exact_titan.runs.run_folder import copy_tokenizer
from exact_titan.system.json_files import read_json, read_optional_object

CONFIG = "tokenizer_config.json"
GENERATION_CONFIG = "generation_config.json"

_ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")
# With add_bos_token or add_eos_token transformers 5 replaces the post-processor of tokenizer.json. The other keys are
# for the class that wrote the file.
_DROPPED = ("add_bos_token", "add_eos_token", "auto_map", "backend", "is_local", "local_files_only", "name_or_path")
# The split of Qwen2Tokenizer in transformers 5.
_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class SpecialIds:
    """Token ids for ``config.json`` and ``generation_config.json``. None: the tokenizer names no such token."""

    bos: int | None
    eos: int | None


def write_tokenizer(source: Path, target: Path, *, model_config: dict[str, Any], max_positions: int) -> SpecialIds:
    """Write the tokenizer files of an export.

    Args:
        source: the ``model/`` folder of a run.
        target: the folder of the export.
        model_config: the model's ``config.json``. Its ``eos_token_id`` names the end-of-text token if the tokenizer's
            own files name none.
        max_positions: ``model_max_length`` if the tokenizer's own files set none.

    Raises:
        InputError: if a file of the tokenizer is damaged. The message names the file.
    """
    copy_tokenizer(source, target)
    tokenizer = load_tokenizer(source / "tokenizer.json")
    config = {"model_max_length": max_positions, **_read(source / "special_tokens_map.json"), **_read(source / CONFIG)}
    eos_id = model_config.get("eos_token_id")
    eos_id = eos_id[0] if isinstance(eos_id, list) and eos_id else eos_id
    if not config.get("eos_token") and isinstance(eos_id, int) and 0 <= eos_id < tokenizer.get_vocab_size():
        config["eos_token"] = tokenizer.id_to_token(eos_id)
    bos_id = _added_first(tokenizer)
    if not config.get("bos_token") and bos_id is not None:
        config["bos_token"] = tokenizer.id_to_token(bos_id)
    if isinstance(extra := config.get("extra_special_tokens"), list):  # transformers 4 takes only an object here
        config["additional_special_tokens"] = [*(config.get("additional_special_tokens") or []), *extra]
        del config["extra_special_tokens"]
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    # transformers 4 would otherwise set add_prefix_space of tokenizer.json to False.
    prefix_space = _prefix_space(source / "tokenizer.json")
    if prefix_space is not None:
        config["add_prefix_space"] = prefix_space
    kept = {key: value for key, value in config.items() if key not in _DROPPED and (key not in _ROLES or value)}
    _write(target / CONFIG, kept)
    ids = {role: tokenizer.token_to_id(_text(kept[role])) for role in _ROLES if role in kept}
    return SpecialIds(bos=ids.get("bos_token"), eos=ids.get("eos_token"))


def why_not_auto(model_folder: Path, family: str) -> str | None:
    """Return why ``AutoTokenizer`` of transformers 5 gives other ids than ``tokenizer.json``. None if it does not.

    transformers 5 loads the tokenizer of every qwen2 model as ``Qwen2Tokenizer``, which has a split of its own. No key
    of an export changes this choice.
    """
    content = read_json(model_folder / "tokenizer.json").get("pre_tokenizer") or {}
    steps = content.get("pretokenizers") or [content]
    if family != "qwen2" or any((step.get("pattern") or {}).get("Regex") == _QWEN2_SPLIT for step in steps):
        return None
    return (
        "transformers 5 replaces the tokenizer of every qwen2 model by Qwen2Tokenizer, but this tokenizer splits text "
        "in another way: load it with PreTrainedTokenizerFast instead of AutoTokenizer"
    )


def write_generation_config(target: Path, config: dict[str, Any]) -> None:
    """Write ``generation_config.json`` with the token ids of ``config``, if the export has no such file."""
    if not (target / GENERATION_CONFIG).is_file():
        names = ("bos_token_id", "eos_token_id", "pad_token_id")
        _write(target / GENERATION_CONFIG, {name: config[name] for name in names if config.get(name) is not None})


def with_special_ids(config: dict[str, Any], ids: SpecialIds) -> dict[str, Any]:
    """Return ``config.json`` with the ids of the tokenizer for keys that are missing or null."""
    found = {"bos_token_id": ids.bos, "eos_token_id": ids.eos}
    return {**config, **{key: value for key, value in found.items() if config.get(key) is None}}


def _added_first(tokenizer: Tokenizer) -> int | None:
    """Return the id that the tokenizer adds before every text. None if the tokenizer adds no id."""
    bare, whole = tokenizer.encode("a", add_special_tokens=False).ids, tokenizer.encode("a").ids
    return whole[0] if len(whole) > len(bare) and whole[: len(bare)] != bare else None


def _prefix_space(file: Path) -> bool | None:
    """Return ``add_prefix_space`` of the pre-tokenizer. None if the pre-tokenizer has no such value."""
    pre_tokenizer = read_json(file).get("pre_tokenizer") or {}
    return pre_tokenizer.get("add_prefix_space")


def _text(token: str | dict[str, Any]) -> str:
    return token["content"] if isinstance(token, dict) else token


def _check_tokens(config: dict[str, Any], file: Path) -> None:
    """Refuse a special token that is neither a text nor an object with a text.

    Raises:
        InputError: naming the file and the key.
    """
    for role in _ROLES:
        token = config.get(role)
        text = token.get("content") if isinstance(token, dict) else token
        if token and not isinstance(text, str):
            raise InputError(f"{file}: {role} is {token!r:.60}: it must be a text, or an object with the text content")
    more = config.get("additional_special_tokens")
    if more is not None and not isinstance(more, list):
        raise InputError(f"{file}: additional_special_tokens is {more!r:.60}: it must be a list")


def _read(file: Path) -> dict[str, Any]:
    content = read_optional_object(file, way_out="copy the file again")
    _check_tokens(content, file)
    return content


def _write(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
