"""The types of the values in ``run.json``. A record may come from somebody else, or may be damaged.

Only the values that this package reads have a type here. A record of an older version lacks some of them.
"""

from typing import Any, TypedDict


class _Training(TypedDict, total=False):
    seq_len: int
    steps: int
    global_batch_size: int
    local_batch_size: int


class _Loader(TypedDict, total=False):
    dataset_path: str
    split: str
    seed: int
    infinite: bool
    allow_changed: list[Any]


class _Validator(TypedDict, total=False):
    enable: bool
    keep_targets: int
    steps: int
    freq: int
    context_gain: list[Any]


class _Loss(TypedDict, total=False):
    threshold: int | None


class _Parallelism(TypedDict, total=False):
    context_parallel_degree: int
    tensor_parallel_degree: int


class _Config(TypedDict, total=False):
    training: _Training
    dataloader: _Loader
    validator: _Validator
    loss: _Loss
    parallelism: _Parallelism


class _Dataset(TypedDict, total=False):
    path: str


class _Data(TypedDict, total=False):
    fingerprint: str
    split: str
    window: int
    order_version: int
    datasets: list[_Dataset]


class _Weights(TypedDict, total=False):
    kind: str
    path: str | None
    step: int | None
    digest: str | None


class RecordValues(TypedDict, total=False):
    """The values of ``run.json`` that this package reads, apart from the starts."""

    config: _Config
    data: _Data
    validation: _Data | None
    weights: _Weights


_NEEDED = (
    *(("config", "training", name) for name in ("seq_len", "global_batch_size", "local_batch_size")),
    ("config", "dataloader", "seed"),
    ("data", "fingerprint"),
)
"""The values that a resume compares."""


def missing_to_resume(fields: dict[str, Any]) -> str | None:
    """Return which value a record lacks for a resume. None: the record has all of them.

    Args:
        fields: the fields of the record. Their types are right.
    """
    for path in _NEEDED:
        tree: Any = fields
        for name in path:
            if name not in tree:
                return ".".join(path)
            tree = tree[name]
    return None if fields["starts"] else "starts[].ranks"
