"""RoPE in a ``config.json``: its keys in transformers 4 and 5, read and written."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exact_titan.errors import InputError
from exact_titan.models.json_values import JsonValues
from exact_titan.models.rope import (
    LinearScaling,
    Llama3Scaling,
    RopeScaling,
    YarnScaling,
    yarn_attention_factor,
)

ORIGINAL = "original_max_position_embeddings"

_KINDS = ("default", "linear", "yarn", "llama3")
_WHY_NOT = {
    "dynamic": "the frequencies of 'dynamic' change with the length of the text, but a packed window has texts of many "
    "lengths",
    "longrope": "'longrope' has two sets of frequencies, one for short and one for long texts",
}


@dataclass(frozen=True)
class Rope:
    """RoPE of a file: base, scaling, and the positions that the model supports."""

    theta: float
    scaling: RopeScaling | None
    positions: int


def read_rope(config: dict[str, Any], file: Path, default: float) -> Rope:
    """Return RoPE of a ``config.json``.

    transformers 5 reads ``rope_scaling`` if the key is not empty, and ``rope_parameters`` otherwise. The base is
    ``rope_theta`` of the object that transformers reads, then ``rope_theta`` at the top level, then the default.
    transformers therefore ignores values of other places without a warning. Contradicting values are refused here.

    The positions are ``max_position_embeddings``. For YaRN the positions are at least factor x original positions, as
    in vLLM: the instructions of Qwen leave ``max_position_embeddings`` as the file has the key.

    Args:
        config: the JSON object without values of null.
        file: the file, for messages.
        default: the base of a file without a base.

    Raises:
        InputError: if a key is wrong, contradicts another key or is not supported. The message names file and key.
    """
    top = JsonValues(config, file)
    keys = [key for key in ("rope_scaling", "rope_parameters") if config.get(key)]
    found = [(key, _rope_of(key, config[key], top, default)) for key in keys] or [
        ("rope_theta", (top.number("rope_theta", default), None))
    ]
    (first, rope), (last, other) = found[0], found[-1]
    if rope != other:
        raise InputError(
            f"{file}: {first} and {last} are both set and give different frequencies: remove one of them, and write "
            f"rope_theta into the other"
        )
    theta, scaling = rope
    positions = top.positive("max_position_embeddings")
    if isinstance(scaling, YarnScaling):
        positions = max(positions, int(scaling.factor * scaling.original_positions))
    return Rope(theta, scaling, positions)


def rope_keys(theta: float, scaling: RopeScaling | None) -> dict[str, Any]:
    """Return the keys of RoPE that transformers 4, transformers 5 and vLLM read alike.

    transformers 4 ignores ``rope_parameters`` without a warning. transformers 5 also reads the keys of transformers 4.
    vLLM takes YaRN's attention factor from ``attention_factor``. Versions until 2025 ignore this key, and multiply
    the paper's value by ``attn_factor``.
    """
    return {"rope_theta": theta, "rope_scaling": None if scaling is None else _parameters(scaling)}


def _parameters(scaling: RopeScaling) -> dict[str, Any]:
    found: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if isinstance(scaling, Llama3Scaling):
        found |= {"low_freq_factor": scaling.low_freq_factor, "high_freq_factor": scaling.high_freq_factor}
    if isinstance(scaling, YarnScaling):
        found |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow, "truncate": scaling.truncate}
        if scaling.attention_factor is not None:
            found["attention_factor"] = scaling.attention_factor
            found["attn_factor"] = scaling.attention_factor / yarn_attention_factor(scaling.factor)
    if not isinstance(scaling, LinearScaling):
        found[ORIGINAL] = scaling.original_positions
    return found


def _rope_of(key: str, parameters: Any, top: JsonValues, default: float) -> tuple[float, RopeScaling | None]:
    """Return the base and the scaling in ``rope_scaling`` or ``rope_parameters``, the object with the name ``key``."""
    file = top.file
    if not isinstance(parameters, dict):
        raise InputError(f"{file}: {key} is not a JSON object")
    nested = next((name for name, value in parameters.items() if isinstance(value, dict)), None)
    if nested is not None:
        raise InputError(
            f"{file}: {key}.{nested} is an object of one layer type: only one object for all layers is supported"
        )
    read = JsonValues(parameters, file, prefix=f"{key}.")
    theta = read.number("rope_theta") if "rope_theta" in parameters else top.number("rope_theta", default)
    if "rope_theta" in top.config and top.number("rope_theta") != theta:
        raise InputError(
            f"{file}: rope_theta is {top.config['rope_theta']!r} and {key}.rope_theta is {parameters['rope_theta']!r}: "
            f"remove one of them"
        )
    # transformers before 4.43 calls this key "type".
    kinds = [parameters[name] for name in ("rope_type", "type") if name in parameters] or ["default"]
    if kinds[0] != kinds[-1]:
        raise InputError(f"{file}: {key}.rope_type is {kinds[0]!r} and {key}.type is {kinds[-1]!r}: remove one of them")
    kind = kinds[0]
    if kind not in _KINDS:
        why = f"; {_WHY_NOT[kind]}" if kind in _WHY_NOT else ""
        raise InputError(
            f"{file}: {key}.rope_type is {kind!r:.60}: supported are {', '.join(map(repr, _KINDS))}{why}: use another "
            f"model, or leave {key} out and continue the model with --rope.scaling"
        )
    if kind == "default":
        if parameters.get("factor") is not None:
            raise InputError(
                f"{file}: {key}.factor is {parameters['factor']!r}, but {key} has no rope_type that uses a factor: "
                f"remove factor, or set rope_type to 'linear', 'yarn' or 'llama3'"
            )
        return theta, None
    if kind == "linear":
        return theta, LinearScaling(factor=read.number("factor"))
    if kind == "yarn":
        return theta, _yarn(key, read, top, theta)
    return theta, _llama3(key, read, top)


def _original_positions(key: str, read: JsonValues, top: JsonValues) -> int:
    """Return the positions before the scaling. transformers takes ``max_position_embeddings`` if the key is missing."""
    at_top = top.positive(ORIGINAL, top.positive("max_position_embeddings"))
    found = read.positive(ORIGINAL, at_top)
    if top.config.get(ORIGINAL, found) != found:
        raise InputError(f"{top.file}: {ORIGINAL} is {at_top} and {key}.{ORIGINAL} is {found}: remove one of them")
    return found


def _llama3(key: str, read: JsonValues, top: JsonValues) -> Llama3Scaling:
    scaling = Llama3Scaling(
        factor=read.number("factor"),
        low_freq_factor=read.number("low_freq_factor"),
        high_freq_factor=read.number("high_freq_factor"),
        original_positions=_original_positions(key, read, top),
    )
    if scaling.high_freq_factor <= scaling.low_freq_factor:
        raise InputError(
            f"{top.file}: {key}.high_freq_factor is {scaling.high_freq_factor:g}: it must be above low_freq_factor "
            f"({scaling.low_freq_factor:g})"
        )
    return scaling


def _yarn(key: str, read: JsonValues, top: JsonValues, theta: float) -> YarnScaling:
    # transformers reads a missing key, null and 0 as the default.
    given = {name: value for name, value in read.config.items() if value not in (None, 0) or name == "factor"}
    given |= {name: read.config[name] for name in ("truncate", "attention_factor") if read.config.get(name) is not None}
    values = JsonValues(given, top.file, prefix=f"{key}.")
    factor = values.number("factor")
    if factor < 1:
        raise InputError(f"{top.file}: {key}.factor is {factor:g}: the factor of 'yarn' must be 1 or more")
    if theta <= 1:
        raise InputError(f"{top.file}: rope_theta is {theta:g}: 'yarn' needs a base above 1")
    fast, slow = values.number("beta_fast", 32.0), values.number("beta_slow", 1.0)
    if fast < slow:
        raise InputError(f"{top.file}: {key}.beta_fast is {fast:g}: beta_fast must not be below beta_slow ({slow:g})")
    attention = values.number("attention_factor") if "attention_factor" in given else None
    if attention is None and {"mscale", "mscale_all_dim"} <= given.keys():
        attention = yarn_attention_factor(factor, values.number("mscale")) / yarn_attention_factor(
            factor, values.number("mscale_all_dim")
        )
    scaling = YarnScaling(
        factor=factor,
        original_positions=_original_positions(key, values, top),
        beta_fast=fast,
        beta_slow=slow,
        attention_factor=attention,
        truncate=values.truth("truncate") if "truncate" in given else True,
    )
    _refuse_other_attention(key, values, scaling)
    return scaling


def _refuse_other_attention(key: str, values: JsonValues, scaling: YarnScaling) -> None:
    """Refuse keys of vLLM that give another RoPE than the keys of transformers."""
    if "attn_factor" in values.config:
        in_vllm = values.number("attn_factor") * yarn_attention_factor(scaling.factor)
        if not math.isclose(in_vllm, scaling.cos_sin_factor, rel_tol=1e-6):
            raise InputError(
                f"{values.file}: {key}.attn_factor gives an attention factor of {in_vllm:g} in vLLM, but transformers "
                f"computes {scaling.cos_sin_factor:g}: leave attn_factor out, or set attention_factor to {in_vllm:g}"
            )
    if values.number("extrapolation_factor", 1.0) != 1:
        raise InputError(
            f"{values.file}: {key}.extrapolation_factor is {values.config['extrapolation_factor']!r:.60}: transformers "
            f"ignores this key: leave extrapolation_factor out"
        )
