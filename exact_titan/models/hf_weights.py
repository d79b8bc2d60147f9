"""Tensor names of Hugging Face and of torchtitan, and the check that a folder's weights match an architecture.

The check reads only safetensors files, and only the headers of these files. torchtitan's checkpointer reads the weights
directly into the sharded model.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from exact_titan.errors import InputError
from exact_titan.models.architecture import Architecture
from exact_titan.system.file_errors import check_readable
from exact_titan.system.folder_files import is_plain_name
from exact_titan.system.json_files import read_json

INDEX_NAME = "model.safetensors.index.json"

_NATIVE_TO_HF = {
    "tok_embeddings": "model.embed_tokens",
    "attention.qkv_linear.wq": "self_attn.q_proj",
    "attention.qkv_linear.wk": "self_attn.k_proj",
    "attention.qkv_linear.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "norm": "model.norm",
    "lm_head": "lm_head",
}
_HF_TO_NATIVE = {hf: native for native, hf in _NATIVE_TO_HF.items()}

# Old versions of transformers write these frequencies. The model computes them from the config.
_COMPUTED = re.compile(r".*rotary_emb\.inv_freq")
_DTYPES = {"F64", "F32", "F16", "BF16"}


def hf_name(native: str) -> str:
    """Return Hugging Face's name of a torchtitan parameter.

    Example: ``layers.0.attention.wo.weight`` -> ``model.layers.0.self_attn.o_proj.weight``.

    Raises:
        KeyError: if torchtitan has no such parameter.
    """
    return _rename(native, r"layers\.\d+\.", _NATIVE_TO_HF, "model.{}")


def native_name(hf: str) -> str:
    """Return torchtitan's name of a Hugging Face tensor: the inverse of :func:`hf_name`."""
    return _rename(hf, r"model\.layers\.\d+\.", _HF_TO_NATIVE, "{}")


def _rename(name: str, layer: str, names: dict[str, str], prefix: str) -> str:
    stem, _, leaf = name.rpartition(".")
    match = re.match(layer, stem)
    if match is None:
        return f"{names[stem]}.{leaf}"
    return f"{prefix.format(match[0].removeprefix('model.'))}{names[stem[match.end() :]]}.{leaf}"


@dataclass(frozen=True)
class _Tensor:
    file: Path
    shape: tuple[int, ...]
    dtype: str


def check_weights(folder: Path, architecture: Architecture) -> None:
    """Refuse a folder whose safetensors are not exactly the architecture's weights. Only headers are read.

    Raises:
        InputError: if a tensor is missing, is unknown, or has another shape or dtype. The message names the file, or
            the tensor and both shapes.
    """
    found = _headers(folder)
    expected = architecture.tensors()
    for name, shape in expected.items():
        if name not in found:
            raise InputError(
                f"{folder}: the weights lack the tensor {name}, {_text(shape)} in {folder / 'config.json'}: "
                "download the folder again"
            )
        tensor = found[name]
        if tensor.shape != shape:
            raise InputError(
                f"{tensor.file}: the tensor {name} is {_text(tensor.shape)}, "
                f"but {folder / 'config.json'} requires {_text(shape)}"
            )
        if tensor.dtype not in _DTYPES:
            raise InputError(f"{tensor.file}: the tensor {name} has the dtype {tensor.dtype}: use unquantized weights")
    for name, tensor in found.items():
        # A folder of a tied model may also contain the output layer. transformers ignores that tensor too.
        tied = name == "lm_head.weight" and architecture.tie_embeddings
        if name not in expected and not tied and not _COMPUTED.fullmatch(name):
            raise InputError(f"{tensor.file}: the tensor {name} is not in the model of {folder / 'config.json'}")


def _text(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a scalar"


def _headers(folder: Path) -> dict[str, _Tensor]:
    """Return every tensor in the safetensors files of the folder, by name."""
    _check_shards(folder)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        others = sorted(path.name for pattern in ("*.bin", "*.pth", "*.pt") for path in folder.glob(pattern))
        pickles = f" ({others[0]} is not read: pickles can run code)" if others else ""
        raise InputError(f"{folder} has no .safetensors weights{pickles}: download or save the model as safetensors")
    tensors: dict[str, _Tensor] = {}
    for file in files:
        # A link out of the folder is allowed: some tools download weights into a shared cache and link them.
        if not file.is_file():  # such as a pipe, which never ends
            raise InputError(f"{file} is not a file: download the folder again")
        check_readable(file)
        try:
            with safe_open(file, framework="pt") as opened:
                slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
                for name, one in slices.items():
                    if name in tensors:
                        raise InputError(f"{folder}: the tensor {name} is in {tensors[name].file.name} and {file.name}")
                    tensors[name] = _Tensor(file, tuple(one.get_shape()), one.get_dtype())
        except SafetensorError as error:
            raise InputError(f"{file} is truncated or is not a safetensors file: {error}") from None
    return tensors


def _check_shards(folder: Path) -> None:
    """Refuse an index that names a missing shard: the download is incomplete."""
    index = folder / INDEX_NAME
    if not index.is_file():
        return
    try:
        shards = read_json(index)["weight_map"].values()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{index} is not a safetensors index: {error!r}") from None
    if others := [shard for shard in shards if not is_plain_name(shard)]:
        raise InputError(
            f"{index} names {others[0]!r:.100}, which is not a file of the folder: download the folder again"
        )
    for shard in sorted(set(shards)):
        if not (folder / shard).is_file():
            raise InputError(f"{folder}: the shard {shard} of {INDEX_NAME} is missing: download the folder again")
