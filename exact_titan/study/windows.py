"""The windows of every step of a run, from the run's record: the order is a pure function of data, seed and place."""

import hashlib
from dataclasses import dataclass

from exact_titan.errors import InputError
from exact_titan.runs.run_record import RunRecord, options_of, order_version
from exact_titan.sampling.mixture import Mixture
from exact_titan.sampling.run_order import RunOrder

_SHOWN_STEPS = 2


@dataclass(frozen=True)
class StepWindows:
    """The windows of a run.

    Attributes:
        steps: number of optimizer steps.
        windows_per_step: windows of a step over all ranks.
        sha256: SHA-256 of a line ``STEP:FINGERPRINT/WINDOW,FINGERPRINT/WINDOW…`` for every step, in the order of the
            places. Padding after the last window of the data has no entry.
        shown: the window numbers of the first two and the last two steps, by step, as text. In a mixture each number
            stands after the index of its dataset, as ``1/17``.
    """

    steps: int
    windows_per_step: int
    sha256: str
    shown: dict[int, str]


def step_windows(record: RunRecord) -> StepWindows:
    """Return the windows of all steps of a run.

    Raises:
        InputError: if the dataset is missing, or is not the dataset of the run any more.
    """
    options = options_of(record.config)
    mixture = Mixture(options["dataloader.dataset_path"], options["dataloader.split"])
    if mixture.fingerprint != record.data["fingerprint"]:
        raise InputError(
            f"{options['dataloader.dataset_path']} has changed since {options['dump_folder']} was trained: "
            f"{mixture.difference(record.data['fingerprint'])}: put the old dataset back"
        )
    order = RunOrder(
        mixture,
        seed=options["dataloader.seed"],
        infinite=options["dataloader.infinite"],
        version=order_version(record.data),
    )
    steps, batch = options["training.steps"], options["training.global_batch_size"]
    if batch <= 0:
        batch = options["training.local_batch_size"] * record.starts[-1].ranks
    if order.places is not None:  # the data may end before the last step
        steps = min(steps, -(-order.places // batch))
    names = [dataset.manifest.fingerprint for dataset in mixture.datasets]
    digest, shown = hashlib.sha256(), {}
    for step in range(1, steps + 1):
        places = range((step - 1) * batch, step * batch)
        windows = [found for place in places if (found := order.window(place)) is not None]
        digest.update(f"{step}:{','.join(f'{names[index]}/{window}' for index, window in windows)}\n".encode())
        if not _SHOWN_STEPS < step <= steps - _SHOWN_STEPS:
            texts = [str(window) if len(names) == 1 else f"{index}/{window}" for index, window in windows]
            shown[step] = " ".join(texts)
    return StepWindows(steps, batch, digest.hexdigest(), shown)
