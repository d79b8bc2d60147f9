"""Which context lengths are "trained" and which are "extrapolated" for a training window."""

from collections.abc import Sequence
from dataclasses import dataclass

from exact_titan.errors import InputError
from exact_titan.evaluation.model_folder import EvaluatedModel
from exact_titan.reports.paper_values import PaperValues, paper_values

REGIMES = ("trained", "extrapolated")


@dataclass(frozen=True)
class Lengths:
    """The regimes of the lengths.

    Attributes:
        window: training window in tokens. None: the user states the lengths of a model with an unknown window.
        trained, extrapolated: the lengths of each regime. None: the rule of :meth:`regime` decides.
        source: a sentence for the reader of a report.
    """

    window: int | None
    trained: tuple[int, ...] | None
    extrapolated: tuple[int, ...] | None
    source: str

    def regime(self, length: int) -> str | None:
        """Return the regime of a length. None: the length belongs to no regime."""
        if self.trained is None or self.extrapolated is None:
            assert self.window is not None
            return "trained" if length <= self.window else "extrapolated"
        return "trained" if length in self.trained else "extrapolated" if length in self.extrapolated else None

    def absent(self, present: Sequence[int]) -> list[int]:
        """Return the stated lengths that are not present."""
        return sorted({*(self.trained or ()), *(self.extrapolated or ())} - set(present))


def find_lengths(
    name: str,
    window: int | None,
    trained: Sequence[int],
    extrapolated: Sequence[int],
    paper: PaperValues | None = None,
) -> Lengths:
    """Return the regimes of the lengths for a window.

    The lengths are those that the user states, or those of the paper's Table 1 for this window. If the lengths of Table
    1 are not in the file of the paper's figures, lengths up to the window are trained, and longer lengths are
    extrapolated.

    Args:
        name: name of the model, for the message.
        window: training window in tokens. None: unknown.
        trained, extrapolated: the lengths that the user states, in tokens. Both empty: the user states none.
        paper: the paper's figures. None: those of the package.

    Raises:
        InputError: if a length is in both regimes, if the window is unknown, or if the paper has no such window.
    """
    paper = paper or paper_values()
    if trained or extrapolated:
        if twice := sorted(set(trained) & set(extrapolated)):
            raise InputError(f"--trained and --extrapolated both name the length {twice[0]}: name a length once")
        return Lengths(window, tuple(trained), tuple(extrapolated), "The user states the lengths of each regime.")
    way_out = "name the lengths, such as --trained 1024 2048 --extrapolated 4096"
    if window is None:
        raise InputError(f"the training window of {name} is not known (a folder without a run's record): {way_out}")
    if found := paper.lengths.get(window):
        return Lengths(
            window, found.trained, found.extrapolated, f"The lengths are those of the paper ({found.source})."
        )
    if window not in paper.windows:
        windows = ", ".join(map(str, paper.windows))
        raise InputError(
            f"the paper has no lengths for a window of {window} tokens ({name}), only for {windows}: {way_out}"
        )
    return Lengths(
        window,
        None,
        None,
        f"Lengths up to the window of {window} tokens are trained, and longer lengths are extrapolated. This rule is "
        f"ours, because the lengths of the paper's Table 1 were not at hand.",
    )


def common_lengths(models: Sequence[EvaluatedModel], trained: Sequence[int], extrapolated: Sequence[int]) -> Lengths:
    """Return the regimes of the lengths for the window of all models. A model with an unknown window has this window.

    Raises:
        InputError: if two models have different windows and the user states no lengths.
    """
    known = [one for one in models if one.window is not None]
    first = known[0] if known else models[0]
    other = next((one for one in known if one.window != first.window), None)
    if other is not None and not (trained or extrapolated):
        raise InputError(
            f"{first.name} has a window of {first.window} tokens, and {other.name} has {other.window}: "
            f"name the lengths, such as --trained 1024 2048 --extrapolated 4096, or compare models of one window"
        )
    return find_lengths(first.name, first.window if other is None else None, trained, extrapolated)
