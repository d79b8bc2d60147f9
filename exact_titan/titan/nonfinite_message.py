"""The message of a run that a non-finite loss or gradient has ended."""

from collections.abc import Iterator

from exact_titan.reports.window import window_summary
from exact_titan.titan.loader import PackedDataLoader
from exact_titan.titan.nonfinite import NonFinite

_NAMED_WINDOWS = 4
"""Number of windows whose documents the message names."""


def explain(found: NonFinite, *, step: int, saved: int, loader: PackedDataLoader) -> Iterator[str]:
    """Yield the lines of the message: the value, the windows with their documents, the command for their text.

    Args:
        found: the value, with its step and its places.
        step: the last step of the run.
        saved: step of the last checkpoint. 0: there is no checkpoint.
        loader: the dataloader, which finds the windows of the places.
    """
    yield (
        f"exact_titan.train: stopped: {found.what} at step {found.step}, seen after step {step}; "
        f"{f'the last checkpoint, of step {saved}, is from before' if saved else 'there is no checkpoint yet'}"
    )
    windows = [window for place in found.places if (window := loader.window_at(place)) is not None]
    for dataset, number in windows[:_NAMED_WINDOWS]:
        yield f"  {window_summary(dataset, number)}"
    if len(windows) > _NAMED_WINDOWS:
        more = ", ".join(f"{number} of {dataset.folder}" for dataset, number in windows[_NAMED_WINDOWS:])
        yield f"  and the windows {more}"
    for dataset, number in windows[:1]:
        yield f"  all text of the window: exact-titan window {dataset.folder} {number}"
