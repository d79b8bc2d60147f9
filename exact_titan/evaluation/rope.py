"""RoPE for more positions than the model has, in a ``config.json`` that transformers 4, 5 and vLLM read."""

from pathlib import Path
from typing import Any

from exact_titan.errors import InputError
from exact_titan.evaluation.engine_options import RopeOptions
from exact_titan.models.hf_rope import ORIGINAL
from exact_titan.models.rope_change import scaled_positions


def extended_config(config: dict[str, Any], rope: RopeOptions, file: Path) -> dict[str, Any]:
    """Return a ``config.json`` with an extension of RoPE.

    ``yarn`` is arXiv 2309.00071, ``linear`` is arXiv 2306.15595. ``dynamic`` of transformers is not offered: its
    frequencies change with the length so far, but the keys in the cache keep their old frequencies. Its answers
    therefore depend on the division of the prompt into chunks.

    Args:
        config: the model's ``config.json``.
        rope: rule and factor.
        file: the file, for messages.

    Raises:
        InputError: if the factor is not above 1 or gives no whole number of positions, or if the config has no
            positions or has an extension already.
    """
    positions = config.get("max_position_embeddings")
    if not isinstance(positions, int):
        raise InputError(f"{file}: max_position_embeddings is missing: --rope.scaling needs the positions of the model")
    if not rope.factor > 1:
        raise InputError(f"--rope.factor is {rope.factor:g}: the factor must be above 1")
    nested = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or nested
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind != "default":
        raise InputError(
            f"{file}: the model's RoPE is scaled already ({kind}): --rope.scaling replaces only the default RoPE"
        )
    theta = nested.get("rope_theta", config.get("rope_theta"))
    parameters = {"rope_type": rope.scaling, "factor": rope.factor}
    if rope.scaling == "yarn":
        parameters[ORIGINAL] = positions
    # transformers prefers the original positions at the top level.
    kept = {key: value for key, value in config.items() if key not in ("rope_parameters", ORIGINAL)}
    # transformers 4 reads rope_theta at the top level and rope_scaling. transformers 5 reads both, too.
    return {
        **kept,
        # Without the key, transformers has a default for each family.
        **({} if theta is None else {"rope_theta": theta}),
        "rope_scaling": parameters,
        "max_position_embeddings": scaled_positions(rope.factor, positions),
    }
