"""The rules in plain Python, target by target, for the tests of the package."""

from collections.abc import Sequence

from tests.exposure.test_draws import python_splitmix64

Window = Sequence[int]
"""The lengths of the document segments of a window. The rest of the window has no targets."""


def bucket_of(context: int, bounds: Sequence[int]) -> int:
    return max(b for b, bound in enumerate(bounds) if bound <= context)


def contexts(window: Window) -> list[int]:
    """The effective context of every target of a window."""
    return [context for length in window for context in range(1, length + 1)]


def inverse_frequency(
    counts: Sequence[float], bounds: Sequence[int], threshold: int, alpha: float, gamma: float, eps: float = 1e-6
) -> list[float]:
    """The weight of every bucket by the equations of the method, one by one."""
    tail = [b for b, bound in enumerate(bounds) if bound >= threshold]
    total = sum(counts[b] for b in tail)
    weights = [1.0] * len(bounds)
    for b in tail:
        weights[b] = 1 + alpha
    counted = [b for b in tail if counts[b]]
    inverse = {b: (counts[b] / total + eps) ** -gamma for b in counted}
    mean = sum(counts[b] / total * inverse[b] for b in counted)
    for b in counted:
        weights[b] = 1 + alpha * inverse[b] / mean
    return weights


def naive_weights(
    rule: str,
    windows: Sequence[Window],
    dataset: Sequence[Window],
    bounds: Sequence[int],
    *,
    threshold: int,
    alpha: float = 0.15,
    gamma: float = 0.5,
    seed: int = 0,
    places: Sequence[int] = (),
) -> list[list[float]]:
    """The weight of every target of some windows.

    Args:
        rule: name of the rule.
        windows: windows of the dataset.
        dataset: all windows of the dataset.
        bounds: lower bounds of the buckets.
        threshold, alpha, gamma: options of the rule.
        seed, places: seed of the run, and the place of every window in the run.
    """
    by_context, by_position = [0] * len(bounds), [0] * len(bounds)
    for window in dataset:
        for position, context in enumerate(contexts(window), start=1):
            by_context[bucket_of(context, bounds)] += 1
            by_position[bucket_of(position, bounds)] += 1
    total = sum(by_context)
    tail = [b for b, bound in enumerate(bounds) if bound >= threshold]
    exact = inverse_frequency(by_context, bounds, threshold, alpha, gamma)
    scaled = alpha * sum(by_context[b] for b in tail) / max(1, sum(by_position[b] for b in tail))
    position_weights = inverse_frequency(by_position, bounds, threshold, scaled, gamma)
    run = python_splitmix64(0, seed)

    def weight(row: int, index: int, context: int) -> float:
        if rule == "standard":
            return 1.0
        if rule == "uniform":
            return 1 + alpha if bounds[bucket_of(context, bounds)] >= threshold else 1.0
        if rule in ("exact", "normalized_exact"):
            return exact[bucket_of(context, bounds)]
        if rule == "packed_position":
            return position_weights[bucket_of(index + 1, bounds)]
        assert rule == "random", rule
        drawn = (python_splitmix64(python_splitmix64(run, places[row]), index) >> 11) / 2**53
        below = 0.0
        for b, count in enumerate(by_context):
            below += count
            if drawn < below / total:
                return exact[b]
        raise AssertionError(drawn)

    return [
        [weight(row, index, context) for index, context in enumerate(contexts(window))]
        for row, window in enumerate(windows)
    ]
