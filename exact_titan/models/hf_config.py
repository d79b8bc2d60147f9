"""Reading the ``config.json`` of a Hugging Face folder into an :class:`Architecture`, and the reverse.

The reader uses only the keys that the supported families need. The reader refuses, by name, every key that changes the
computation and is not supported. The reader ignores all other keys. Code in the folder is never run.
"""

import json
from pathlib import Path
from typing import Any

from exact_titan.documents.hub import hub_hint
from exact_titan.errors import InputError
from exact_titan.models.architecture import MOST_LAYERS, Architecture
from exact_titan.models.hf_rope import ORIGINAL, read_rope, rope_keys
from exact_titan.models.json_values import JsonValues
from exact_titan.system.folder_files import check_inside
from exact_titan.system.json_files import read_json
from exact_titan.system.typed_values import fits

FILE_NAME = "config.json"

DEFAULT_THETA = 10_000.0
"""The base of RoPE in transformers, for files without ``rope_theta``. SmolLM3 has another default."""

_FAMILIES: dict[str, str] = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "SmolLM3ForCausalLM": "smollm3",
}
# The defaults of transformers, for keys that old files omit.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "tie_word_embeddings": False},
    "mistral": {"max_position_embeddings": 131_072, "rms_norm_eps": 1e-6, "tie_word_embeddings": False},
    "qwen2": {"max_position_embeddings": 32_768, "rms_norm_eps": 1e-6, "tie_word_embeddings": False},
    "qwen3": {"max_position_embeddings": 32_768, "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "head_dim": 128},
    "smollm3": {
        "max_position_embeddings": 32_768,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "no_rope_layer_interval": 4,
    },
}
_THETAS = {"smollm3": 2_000_000.0}
_MISTRAL_WINDOW = 4096
"""``sliding_window`` of a Mistral file without the key, in transformers."""


def read_config(folder: Path) -> dict[str, Any]:
    """Return the JSON object in ``folder/config.json``.

    Raises:
        InputError: if the folder does not exist, or if the file is missing, is a link out of the folder, or is not a
            JSON object. The message names the folder or the file.
    """
    if not folder.is_dir():
        hint = "for a model of the Hugging Face hub, run `hf download {} --local-dir FOLDER` and give the folder"
        raise InputError(f"{folder}: no such folder{hub_hint(str(folder), hint)}")
    file = folder / FILE_NAME
    check_inside(folder, file)
    try:
        config = read_json(file)
    except FileNotFoundError:
        raise InputError(f"{folder} has no {FILE_NAME}: it is not a Hugging Face model folder") from None
    except ValueError as error:
        raise InputError(f"{file} is not a readable JSON file: {error}") from None
    if not isinstance(config, dict):
        raise InputError(f"{file} is not a JSON object")
    return config


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """Write ``folder/config.json``."""
    (folder / FILE_NAME).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_architecture(folder: Path) -> Architecture:
    """Return the architecture of the model in a Hugging Face folder. The function reads only ``config.json``.

    The function reads both forms of the RoPE keys: ``rope_theta`` and ``rope_scaling`` at the top level
    (transformers 4), or both keys inside ``rope_parameters`` (transformers 5). The function refuses a file whose two
    forms contradict each other.

    Raises:
        InputError: if a key is missing, wrong or not supported. The message names the file and the key.
    """
    file = folder / FILE_NAME
    config = read_config(folder)
    family = _family(config, file)
    _refuse_unsupported(config, file)
    read = JsonValues({**_DEFAULTS[family], **{key: value for key, value in config.items() if value is not None}}, file)
    dim, n_heads = read.positive("hidden_size"), read.positive("num_attention_heads")
    if "head_dim" not in read.config and dim % n_heads:
        raise InputError(f"{file}: hidden_size ({dim}) is not a multiple of num_attention_heads ({n_heads})")
    head_dim = read.positive("head_dim", dim // n_heads)
    n_kv_heads = read.positive("num_key_value_heads", n_heads)
    if head_dim % 2:
        raise InputError(f"{file}: head_dim is {head_dim}: RoPE needs an even head_dim")
    if n_heads % n_kv_heads:
        raise InputError(f"{file}: num_key_value_heads ({n_kv_heads}) does not divide num_attention_heads ({n_heads})")
    if family == "mistral" and (window := config.get("sliding_window", _MISTRAL_WINDOW)) is not None:
        raise InputError(
            f"{file}: sliding_window is {window!r:.60} (without the key: {_MISTRAL_WINDOW}): only null is supported: "
            f"use a model without a sliding window"
        )
    rope = read_rope(read.config, file, _THETAS.get(family, DEFAULT_THETA))
    n_layers = read.positive("num_hidden_layers", most=MOST_LAYERS)
    architecture = Architecture(
        family=family,
        dim=dim,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        ffn_dim=read.positive("intermediate_size"),
        vocab_size=read.positive("vocab_size"),
        max_positions=rope.positions,
        rope_theta=rope.theta,
        rope_scaling=rope.scaling,
        norm_eps=read.number("rms_norm_eps", below=1.0),
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        layers_without_rope=_layers_without_rope(read, n_layers) if family == "smollm3" else (),
        tie_embeddings=read.truth("tie_word_embeddings"),
    )
    architecture.check_size(str(file))
    return architecture


def make_config(architecture: Architecture, *, eos_token_id: int | None) -> dict[str, Any]:
    """Return a ``config.json`` for a model that has no such file yet. transformers 4 and 5 both read its keys.

    Args:
        eos_token_id: the token that ends a document. Generation stops at this token. None: not known.
    """
    name = next(name for name, family in _FAMILIES.items() if family == architecture.family)
    without_rope = architecture.layers_without_rope
    of_family: dict[str, dict[str, Any]] = {
        "mistral": {"sliding_window": None},
        "smollm3": {"no_rope_layers": [int(i not in without_rope) for i in range(architecture.n_layers)]},
    }
    return {
        "architectures": [name],
        "model_type": architecture.family,
        "hidden_size": architecture.dim,
        "num_hidden_layers": architecture.n_layers,
        "num_attention_heads": architecture.n_heads,
        "num_key_value_heads": architecture.n_kv_heads,
        "head_dim": architecture.head_dim,
        "intermediate_size": architecture.ffn_dim,
        "vocab_size": architecture.vocab_size,
        "max_position_embeddings": architecture.max_positions,
        **rope_keys(architecture.rope_theta, architecture.rope_scaling),
        "rms_norm_eps": architecture.norm_eps,
        "hidden_act": "silu",
        "tie_word_embeddings": architecture.tie_embeddings,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": eos_token_id,
        "use_cache": True,
        **of_family.get(architecture.family, {}),
    }


def portable_config(config: dict[str, Any], architecture: Architecture, *, dtype: str) -> dict[str, Any]:
    """Return a ``config.json`` with the keys of RoPE and of the dtype that transformers 4 and 5 both read.

    transformers before 4.56 ignores ``dtype``.

    Args:
        config: the model's ``config.json``.
        architecture: :func:`read_architecture` of the same file.
        dtype: dtype of the weights, such as "bfloat16".
    """
    kept = {key: value for key, value in config.items() if key != "dtype"}
    return {**with_rope(kept, architecture), "torch_dtype": dtype}


def with_rope(config: dict[str, Any], architecture: Architecture) -> dict[str, Any]:
    """Return a ``config.json`` with the RoPE of ``architecture``, in keys that transformers 4, 5 and vLLM read alike.

    ``max_position_embeddings`` becomes the positions of the architecture: factor x original positions for YaRN.
    transformers 4.51 to 4.55 take YaRN's factor from this ratio.

    Args:
        config: the ``config.json`` of a model with the same architecture, except for RoPE.
        architecture: an architecture with the RoPE to write.
    """
    # transformers prefers the original positions at the top level.
    kept = {key: value for key, value in config.items() if key not in ("rope_parameters", ORIGINAL)}
    keys = rope_keys(architecture.rope_theta, architecture.rope_scaling)
    return {**kept, **keys, "max_position_embeddings": architecture.max_positions}


def _family(config: dict[str, Any], file: Path) -> str:
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and len(names) == 1 else names
    if not isinstance(name, str) or name not in _FAMILIES:
        raise InputError(f"{file}: architectures is {names!r:.100}: supported are {', '.join(_FAMILIES)}")
    return _FAMILIES[name]


def _refuse_unsupported(config: dict[str, Any], file: Path) -> None:
    if "auto_map" in config:
        raise InputError(f"{file}: auto_map names code in the folder: code in a model folder is never run")
    if config.get("quantization_config"):
        raise InputError(f"{file}: quantization_config: quantized weights cannot be trained; use the original model")
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if not fits(config.get(key), int | list[int] | None):
            raise InputError(f"{file}: {key} is {config[key]!r:.60}: it must be a token id, or a list of token ids")
    if not fits(config.get("model_type"), str | None):
        raise InputError(f"{file}: model_type is {config['model_type']!r:.60}: it must be a text")
    layer_types = config.get("layer_types") or []
    for key, computed in {
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "use_sliding_window": False,
        "attention_dropout": 0.0,
        "partial_rotary_factor": 1.0,
    }.items():
        for where in (config, config.get("rope_parameters"), config.get("rope_scaling")):
            value = where.get(key) if isinstance(where, dict) else None
            if value is not None and value != computed:
                raise InputError(f"{file}: {key} is {value!r:.60}: only {computed!r} is supported")
    if not isinstance(layer_types, list):
        raise InputError(f"{file}: layer_types is {layer_types!r:.60}: it must be a list")
    other = next((kind for kind in layer_types if kind != "full_attention"), None)
    if other is not None:
        raise InputError(f"{file}: layer_types has {other!r:.60}: only 'full_attention' is supported")


def _layers_without_rope(read: JsonValues, n_layers: int) -> tuple[int, ...]:
    """Return the layers without RoPE of a SmolLM3 file: the zeros in ``no_rope_layers``.

    Without the key, every layer whose number (from 1) is a multiple of ``no_rope_layer_interval`` is a layer without
    RoPE, as in transformers.
    """
    kinds = read.config.get("no_rope_layers")
    if kinds is None:
        interval = read.positive("no_rope_layer_interval")
        return tuple(range(interval - 1, n_layers, interval))
    if not isinstance(kinds, list) or len(kinds) != n_layers or any(kind not in (0, 1) for kind in kinds):
        raise InputError(
            f"{read.file}: no_rope_layers is {kinds!r:.60}: it must be a list of {n_layers} values, 1 for a layer with "
            f"RoPE and 0 for a layer without"
        )
    return tuple(layer for layer, kind in enumerate(kinds) if not kind)
