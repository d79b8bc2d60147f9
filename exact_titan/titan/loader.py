"""The torchtitan dataloader of packed datasets: one global order, host-side document borders, a state of one number."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from torchtitan.components.dataloader import BaseDataLoader
from torchtitan.components.loss import IGNORE_INDEX

from exact_titan.dataset.dataset import PackedDataset, check_ids, reading_window
from exact_titan.dataset.manifest import Manifest
from exact_titan.errors import InputError
from exact_titan.sampling.balance import Imbalance, deal
from exact_titan.sampling.mixture import Mixture
from exact_titan.sampling.order import VERSION
from exact_titan.sampling.run_order import RunOrder, split_fingerprint
from exact_titan.titan.attention_work import check_work, complete_work
from exact_titan.titan.layout import shards_to_check

CHANGES = ("dataset", "seed", "global_batch_size", "seq_len", "loss", "model")
"""Names for ``allow_changed``."""


class PackedDataLoader(BaseDataLoader):
    """Distributes the windows of a packed dataset, or of a mixture of datasets, over the data-parallel ranks.

    1. The run has one global order of windows. The window at place ``k`` (:mod:`exact_titan.sampling`) does not depend
       on the number of ranks. In a mixture a schedule names the dataset of each place (:class:`Mixture`), and each
       dataset has its own order.
    2. Every optimizer step trains on the next ``global_batch_size`` places. The state is therefore one number: the
       first place of the next step. A run may resume with another number of ranks.
    3. The places of a step are assigned to ranks and microbatches with equal attention work
       (:mod:`exact_titan.sampling.balance`). The windows of the step stay the same. The gradient stays the same except
       for the order of its sum. The places are assigned in their order if ``balance`` is off, or if the trainer has not
       set the number of microbatches of a step.
    4. A rank opens only the shards of its own windows. The work of the other windows of the step comes from the
       datasets' files of attention work (:mod:`exact_titan.dataset.work`). The rank compares the work of its own
       windows with their segments.

    Reads are synchronous and happen in the training process: a 16K window takes about 50 µs (docs/benchmarks.md). The
    transfer from a worker process would cost more.

    Yields ``({"input", "positions", "cu_seqlens", "max_seqlen", "places"}, labels)``, all on the host: ``input``,
    ``positions`` and ``labels`` are int64 ``[B, L]`` (``IGNORE_INDEX`` is the label without a target), ``cu_seqlens``
    is int32 ``[n+1]`` over the flattened batch, ``max_seqlen`` is an int, and ``places`` is int64 ``[B]``.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(BaseDataLoader.Config):
        dataset_path: str = ""
        """Folder of the packed dataset (made by `exact-titan pack`), or several folders with weights: web=3,math=1."""

        split: str = "train"
        """Split to read: train or val."""

        seed: int = 0
        """Seed of the order of the windows."""

        infinite: bool = True
        """True: shuffled epochs without end. False without weights: every window once, in order, one dataset after
        another. False with weights: the same windows as with True, until one dataset has no window left for its share.
        Windows without targets fill the last round, because all ranks must get the same number of batches."""

        balance: bool = True
        """Give all ranks and microbatches of a step equal attention work. Off: assign the windows in order."""

        allow_changed: list[str] = field(default_factory=list)
        """Differences from the checkpoint that a resume permits: any of dataset, seed, global_batch_size, seq_len, loss
        and model. Another dataset (or mixture) or seed means another order. The new order starts at its first window.
        seq_len also permits another RoPE and another number of positions."""

        varlen_metadata: bool = True
        """Yield cu_seqlens, max_seqlen and places. Off for torchtitan's own trainer: it passes all tensors to the
        model."""

        # torchtitan leaves names with an underscore out when it writes a config down.
        _mixture: Annotated[Mixture | None, tyro.conf.Suppress] = field(default=None, repr=False, compare=False)
        """The open datasets of dataset_path and split, set by preflight. See :func:`open_mixture`."""

        _new_order: Annotated[bool, tyro.conf.Suppress] = field(default=False, repr=False, compare=False)
        """The checkpoint of a resume has another split or another value of infinite. Set by preflight."""

        _order_version: Annotated[int, tyro.conf.Suppress] = field(default=VERSION, repr=False, compare=False)
        """Version of the order of a small dataset. Set by preflight to the version of the run that a start resumes."""

    def __init__(
        self,
        config: Config,
        *,
        dp_world_size: int,
        dp_rank: int,
        seq_len: int,
        local_batch_size: int,
        **kwargs: Any,
    ) -> None:
        self.config = config
        self.mixture = open_mixture(config, seq_len)
        self.dp_world_size = dp_world_size
        self.dp_rank = dp_rank
        self.local_batch_size = local_batch_size
        self.order = self._run_order(config._order_version)
        self.consumed = 0
        """Places in the optimizer steps whose last batch has been yielded, over all ranks."""

        self._has_work = False
        """Whether all datasets have their attention work, and the steps are balanced with it."""

        self.rounds_per_step: int | None = None
        """Microbatches of each rank in an optimizer step, set by the trainer. None: unknown, each round is a step."""

        self.imbalance = Imbalance()
        """Imbalance of the steps since the last log step, if ``rounds_per_step`` is set."""

        self.last_places: list[int] = []
        """Places of the last batch of this rank."""

    def _run_order(self, version: int) -> RunOrder:
        return RunOrder(self.mixture, seed=self.config.seed, infinite=self.config.infinite, version=version)

    def __iter__(self) -> Iterator[tuple[dict[str, Any], torch.Tensor]]:
        while self.order.places is None or self.consumed < self.order.places:
            places_SRB = self._step(self.consumed)
            for round_, places_RB in enumerate(places_SRB, start=1):
                if round_ == len(places_SRB):
                    self.consumed += places_SRB.size
                yield self._batch(places_RB[self.dp_rank].tolist())

    def _step(self, first: int) -> np.ndarray:
        """Places of the optimizer step that starts at ``first``, int64 ``[rounds, ranks, local_batch_size]``."""
        ranks, batch = self.dp_world_size, self.local_batch_size
        rounds = self.rounds_per_step or 1
        if self.order.places is not None:
            rounds = min(rounds, -(-(self.order.places - first) // (ranks * batch)))
        places_SRB = np.arange(first, first + rounds * ranks * batch).reshape(rounds, ranks, batch)
        if self.rounds_per_step is None or ranks == 1:
            return places_SRB
        if not self._has_work:
            complete_work(self.mixture.datasets)
            self._has_work = True
        work_N = self.order.work(first, places_SRB.size)
        if self.config.balance and rounds * batch > 1:
            places_SRB = first + deal(work_N, ranks=ranks, batch=batch)
        self.imbalance.add(work_N[places_SRB - first].sum(axis=2))
        return places_SRB

    def window_at(self, place: int) -> tuple[PackedDataset, int] | None:
        """Return the dataset and the window number at a place of the run. None for a padding place."""
        found = self.order.window(place)
        return None if found is None else (self.mixture.datasets[found[0]], found[1])

    def _batch(self, places: list[int]) -> tuple[dict[str, Any], torch.Tensor]:
        self.last_places = places
        shape = (self.local_batch_size, self.mixture.window)
        input_BL, labels_BL, positions_BL = (np.empty(shape, dtype=np.int64) for _ in range(3))
        offsets = []
        for row, place in enumerate(places):
            found = self.order.window(place)
            if found is None:
                input_BL[row], labels_BL[row], positions_BL[row] = 0, IGNORE_INDEX, np.arange(shape[1])
                cu_seqlens = np.array([0, shape[1]], dtype=np.int32)
            else:
                dataset, window = self.mixture.datasets[found[0]], found[1]
                with reading_window(dataset, window):
                    cu_seqlens = dataset.read(window, input_BL[row], labels_BL[row], positions_BL[row])
                    if self._has_work:
                        check_work(dataset, window)
                check_ids(dataset, window, input_BL[row], labels_BL[row])
            offsets.append(cu_seqlens[:-1] + row * shape[1])
        inputs: dict[str, Any] = {"input": torch.from_numpy(input_BL), "positions": torch.from_numpy(positions_BL)}
        if self.config.varlen_metadata:
            packed = np.concatenate([*offsets, [shape[0] * shape[1]]]).astype(np.int32)
            inputs |= {
                "cu_seqlens": torch.from_numpy(packed),
                "max_seqlen": int(np.diff(packed).max()),
                "places": torch.tensor(places),
            }
        return inputs, torch.from_numpy(labels_BL)

    def state_dict(self) -> dict[str, Any]:
        """Return the first place of the next step, and the data and options of the order. Equal on all ranks."""
        rounds = self.rounds_per_step or 0
        return {
            "windows": self.consumed,
            "fingerprint": self.order.fingerprint,
            "seed": self.config.seed,
            # 0: unknown, in torchtitan's own trainer.
            "global_batch_size": rounds * self.dp_world_size * self.local_batch_size,
            "seq_len": self.mixture.window,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume at the saved place. Start at place 0 if ``allow_changed`` permits another dataset or seed.

        A checkpoint with an older version of the order keeps the older version.

        Raises:
            InputError: if the checkpoint has other datasets, weights, seed, batch or window, and ``allow_changed`` does
                not name the difference.
        """
        if not state_dict:
            return
        data, version = split_fingerprint(state_dict["fingerprint"])
        now = self.state_dict() | {"fingerprint": self.mixture.fingerprint}
        changes = order_changes(state_dict | {"fingerprint": data}, now, self.mixture)
        refused = {name: change for name, change in changes.items() if name not in self.config.allow_changed}
        if refused:
            allowed = [*self.config.allow_changed, *refused]
            raise InputError(
                f"{self.config.dataset_path}: the checkpoint was trained with {'; '.join(refused.values())}: resume "
                f"with the value of the checkpoint, start in another dump_folder, or allow the change with "
                f"--dataloader.allow_changed {','.join(allowed)}"
            )
        new_order = self.config._new_order or changes.keys() & {"dataset", "seed"}
        self.consumed = 0 if new_order else state_dict["windows"]
        if not new_order:
            self.order = self._run_order(version)


def order_changes(saved: dict[str, Any], now: dict[str, Any], mixture: Mixture) -> dict[str, str]:
    """Return the differences of two orders of windows, by their names in ``allow_changed``.

    Args:
        saved, now: states of dataloaders (:meth:`PackedDataLoader.state_dict`). The places do not matter.
        mixture: the mixture of ``now``.
    """
    changes = {}
    if saved["fingerprint"] != now["fingerprint"]:
        changes["dataset"] = mixture.difference(saved["fingerprint"])
    for name in ("seed", "global_batch_size", "seq_len"):
        if saved[name] != now[name] and (name == "seed" or (saved[name] and now[name])):
            changes[name] = f"{name} {saved[name]}, not {now[name]}"
    return changes


def open_mixture(
    config: PackedDataLoader.Config, seq_len: int, *, manifests: Mapping[Path, Manifest] | None = None
) -> Mixture:
    """Open the datasets that a loader with this config reads, if the config does not carry these datasets.

    Args:
        config: config of the loader.
        seq_len: length of the run's windows, in tokens.
        manifests: manifests that the caller has read already, by folder.

    Raises:
        InputError: if a dataset is missing or damaged, if datasets have different tokenizers or windows, if the window
            length is not ``seq_len``, or if ``infinite`` is on and several datasets have no weights.
    """
    for name in config.allow_changed:
        if name not in CHANGES:
            raise InputError(f"dataloader.allow_changed has {name!r}: it takes any of {', '.join(CHANGES)}")
    if not config.dataset_path:
        raise InputError("dataloader.dataset_path is empty: name a packed dataset (made by `exact-titan pack`)")
    mixture = config._mixture
    if mixture is None or (mixture.dataset_path, mixture.split) != (config.dataset_path, config.split):
        mixture = Mixture(config.dataset_path, config.split, manifests=manifests, checked=shards_to_check())
    check_window(mixture.datasets[0], seq_len)
    if config.infinite and mixture.shares is None:
        raise InputError(
            f"dataset_path is {config.dataset_path}: to mix datasets, give each dataset a weight, "
            f"{mixture.datasets[0].folder}=NUMBER,…"
        )
    return mixture


def check_window(dataset: PackedDataset, seq_len: int) -> None:
    """Refuse a dataset with another window length.

    Raises:
        InputError: naming both lengths.
    """
    if dataset.window != seq_len:
        raise InputError(
            f"{dataset.folder} is packed in windows of {dataset.window} tokens, but training.seq_len is {seq_len}: "
            f"set training.seq_len to {dataset.window}, or pack again with --seq-len {seq_len}"
        )
