"""The types of the values in ``run.json``. A record may come from somebody else, or may be damaged.

Only the values that this package reads have a type here. A record of an older version lacks some of them.
"""

from types import NoneType
from typing import Any

_DATA = {
    "fingerprint": (str,),
    "split": (str,),
    "window": (int,),
    "order_version": (int,),
    "datasets": (list,),
    "datasets[].path": (str,),
}
_START = {
    **dict.fromkeys(("time", "version"), (str,)),
    "commit": (str, NoneType),
    "software": (dict,),
    **dict.fromkeys(("resumed_from", "ranks", "hosts", "replicas", "shards"), (int,)),
}
_TRAINING = dict.fromkeys(("seq_len", "steps", "global_batch_size", "local_batch_size"), (int,))
_LOADER = {"dataset_path": (str,), "split": (str,), "seed": (int,), "infinite": (bool,), "allow_changed": (list,)}
_VALIDATOR = {"enable": (bool,), "keep_targets": (int,), "steps": (int,), "freq": (int,), "context_gain": (list,)}

_TYPES: dict[str, tuple[type, ...]] = {
    "config": (dict,),
    **{f"config.{section}": (dict,) for section in ("training", "dataloader", "validator", "loss", "parallelism")},
    **{f"config.training.{name}": kinds for name, kinds in _TRAINING.items()},
    **{f"config.dataloader.{name}": kinds for name, kinds in _LOADER.items()},
    **{f"config.validator.{name}": kinds for name, kinds in _VALIDATOR.items()},
    "config.loss.threshold": (int, NoneType),
    **{f"config.parallelism.{kind}_parallel_degree": (int,) for kind in ("context", "tensor")},
    "data": (dict,),
    **{f"data.{name}": kinds for name, kinds in _DATA.items()},
    "validation": (dict, NoneType),
    **{f"validation.{name}": kinds for name, kinds in _DATA.items()},
    "loss_data": (str,),
    "weights": (dict,),
    "weights.kind": (str,),
    "weights.path": (str, NoneType),
    "weights.step": (int, NoneType),
    "weights.digest": (str, NoneType),
    "model": (dict,),
    "starts": (list,),
    "starts[]": (dict,),
    **{f"starts[].{name}": kinds for name, kinds in _START.items()},
}
"""The types by the path of the value. ``[]`` stands for every entry of a list."""

_NEEDED = (
    *(f"config.training.{name}" for name in ("seq_len", "global_batch_size", "local_batch_size")),
    *("config.dataloader.seed", "data.fingerprint", "starts[].ranks"),
)
"""The values that a resume compares."""


def why_wrong(fields: dict[str, Any]) -> str | None:
    """Return which value of a record has a wrong type. None: all values have the right types."""
    for path, kinds in _TYPES.items():
        for value in _values(fields, path):
            # type() and not isinstance(), because True is no number.
            if type(value) not in kinds:
                return f"{path} is {value!r:.60}"
            if type(value) is int and not -(2**63) <= value < 2**63:
                return f"{path} is no number of 64 bits"
    return None


def missing_to_resume(fields: dict[str, Any]) -> str | None:
    """Return which value a record lacks for a resume. None: the record has all of them."""
    return next((path for path in _NEEDED if not _values(fields, path)), None)


def _values(tree: Any, path: str) -> list[Any]:
    """Return the values of a path. A missing key gives no value."""
    found = [tree]
    for part in path.replace("[]", ".[]").split("."):
        if part == "[]":
            found = [entry for one in found if isinstance(one, list) for entry in one]
        else:
            found = [one[part] for one in found if isinstance(one, dict) and part in one]
    return found
