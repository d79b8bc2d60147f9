"""Select the parts of each source up to the source's limit. The limit follows from the caps and, in a mix, the weights.

A limit selects the first documents of a source, in the order of the files: whole parts, and the first documents of one
more part. This last part is packed again with only these documents.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import chain
from pathlib import Path

from exact_titan.errors import InputError
from exact_titan.packing.corpus import NO_LIMIT, Corpus, Limit
from exact_titan.packing.empty_sources import check_source
from exact_titan.packing.part_result import PartResult, part_folder
from exact_titan.packing.parts import Part


@dataclass
class _SourceTotal:
    """Numbers of documents and tokens of a source's first ``parts`` parts. All these parts are finished."""

    parts: int = 0
    documents: int = 0
    tokens: int = 0

    def add(self, result: PartResult) -> None:
        self.parts += 1
        self.documents += result.documents
        self.tokens += result.tokens

    def reaches(self, limit: Limit) -> bool:
        """Return whether the total is at the limit or above the limit."""
        enough_tokens = limit.tokens is not None and self.tokens >= limit.tokens
        return enough_tokens or (limit.documents is not None and self.documents >= limit.documents)

    def exceeds(self, limit: Limit) -> bool:
        """Return whether the total is above the limit."""
        tokens = limit.tokens is not None and self.tokens > limit.tokens
        return tokens or (limit.documents is not None and self.documents > limit.documents)

    def remaining(self, limit: Limit) -> Limit:
        """Return the limit minus the total."""
        return Limit(
            None if limit.tokens is None else limit.tokens - self.tokens,
            None if limit.documents is None else limit.documents - self.documents,
        )


class FinishedParts:
    """The results of the finished parts of a corpus.

    Args:
        parts: all parts of the corpus, in their order.
        folder: folder of all parts.
    """

    def __init__(self, parts: Sequence[Part], folder: Path) -> None:
        self._folder = folder
        self._by_source = _by_source(parts)
        self._sums = {source: _SourceTotal() for source in self._by_source}

    def result(self, part: Part) -> PartResult | None:
        """Return the part's result, or None if the part is not finished."""
        return PartResult.read(part_folder(self._folder, part))

    def are_enough(self, part: Part, limit: Limit) -> bool:
        """Return whether the parts of the source before ``part`` are finished up to the limit of the source.

        A part that is not finished ends the count.
        """
        if limit == NO_LIMIT or part.is_cut:
            return False
        parts, total = self._by_source[part.source], self._sums[part.source]
        while not total.reaches(limit) and parts[total.parts].number < part.number:
            result = self.result(parts[total.parts])
            if result is None:
                return False
            total.add(result)
        return total.reaches(limit) and parts[total.parts - 1].number < part.number


def first_limits(corpus: Corpus) -> dict[int, Limit]:
    """Return the limit of each source that is known before any document is read.

    Raises:
        InputError: if a cap is less than the source's share.
    """
    limits = {}
    for index, source in enumerate(corpus.sources):
        limit = source.limit
        if corpus.is_mix and corpus.total is not None:
            share = int(corpus.share(index) * corpus.total)
            cap = getattr(limit, corpus.unit)
            if cap is not None and cap < share:
                raise InputError(
                    f"{corpus.shown}: source {source.path} is capped at {cap:,} {corpus.unit}, its share of "
                    f"{corpus.total:,} is {share:,}: raise max_{corpus.unit}, or lower its weight or {corpus.unit}"
                )
            limit = limit.lowered(corpus.unit, share)
        limits[index] = limit
    return limits


def select(
    corpus: Corpus, parts: Sequence[Part], folder: Path, pack: Callable[[list[Part]], None]
) -> list[tuple[Part, PartResult]]:
    """Return the finished parts of the dataset, in their order.

    Args:
        corpus: the corpus.
        parts: the parts of the corpus. All parts are finished, except parts beyond the first limits.
        folder: folder of all parts.
        pack: function that packs parts with a limit.

    Raises:
        InputError: if a source gives no document, or a source of a mix runs out before its share.
    """
    by_source = _by_source(parts)
    text_key = parts[0].options.text_key
    if not corpus.is_limited:
        pairs = _results(parts, folder)
        _check_sources(corpus, pairs, {}, text_key)
        return pairs
    limits = first_limits(corpus)
    selected = _cut_to_limits(by_source, limits, folder, pack)
    _check_sources(corpus, list(chain(*selected.values())), limits, text_key)
    if not corpus.is_mix:
        return list(chain(*selected.values()))
    amounts = {index: sum(getattr(result, corpus.unit) for _, result in selected.get(index, [])) for index in by_source}
    if corpus.total is not None:
        _check_shares(corpus, by_source, selected, amounts)
        return list(chain(*selected.values()))
    whole = min(Fraction(amount) / corpus.share(index) for index, amount in amounts.items())
    limits = {index: limit.lowered(corpus.unit, int(corpus.share(index) * whole)) for index, limit in limits.items()}
    pairs = list(chain(*_cut_to_limits(by_source, limits, folder, pack).values()))
    _check_sources(corpus, pairs, limits, text_key)
    return pairs


def _check_sources(
    corpus: Corpus, pairs: Sequence[tuple[Part, PartResult]], limits: dict[int, Limit], text_key: str
) -> None:
    for index in range(len(corpus.sources)):
        shares = [result.sources[str(index)] for _, result in pairs if str(index) in result.sources]
        check_source(corpus, index, shares, limits.get(index, NO_LIMIT), text_key)


def _by_source(parts: Sequence[Part]) -> dict[int, list[Part]]:
    """The parts of each source, in their order."""
    by_source: dict[int, list[Part]] = {}
    for part in parts:
        by_source.setdefault(part.source, []).append(part)
    return by_source


def _cut_to_limits(
    by_source: dict[int, list[Part]], limits: dict[int, Limit], folder: Path, pack: Callable[[list[Part]], None]
) -> dict[int, list[tuple[Part, PartResult]]]:
    """Return the first parts of each source, up to the limit of the source. The last part may be cut."""
    selected: dict[int, list[Part]] = {}
    for index, parts in by_source.items():
        selected[index] = []
        total = _SourceTotal()
        for part, result in zip(parts, _results_until(parts, folder), strict=False):
            if total.reaches(limits[index]):
                break
            remaining = total.remaining(limits[index])
            total.add(result)
            selected[index].append(replace(part, limit=remaining) if total.exceeds(limits[index]) else part)
            if total.exceeds(limits[index]):
                break
    pack([part for parts in selected.values() for part in parts if part.is_cut])
    return {index: _results(parts, folder) for index, parts in selected.items()}


def _results_until(parts: Sequence[Part], folder: Path) -> list[PartResult]:
    """Return the results of the first parts, up to the first part that is not finished."""
    results = []
    for part in parts:
        result = PartResult.read(part_folder(folder, part))
        if result is None:
            break
        results.append(result)
    return results


def _results(parts: Sequence[Part], folder: Path) -> list[tuple[Part, PartResult]]:
    pairs = []
    for part in parts:
        result = PartResult.read(part_folder(folder, part))
        assert result is not None, f"part {part.number} is not finished"
        pairs.append((part, result))
    return pairs


def _check_shares(
    corpus: Corpus,
    by_source: dict[int, list[Part]],
    selected: dict[int, list[tuple[Part, PartResult]]],
    amounts: dict[int, int],
) -> None:
    """Check that no source runs out before its share.

    A source with more documents than its share gives its share with an error of less than one document.
    """
    assert corpus.total is not None
    for index, source in enumerate(corpus.sources):
        share, amount = int(corpus.share(index) * corpus.total), amounts.get(index, 0)
        pairs = selected.get(index, [])
        has_more = len(pairs) < len(by_source.get(index, [])) or (bool(pairs) and pairs[-1][0].is_cut)
        if amount < share and not has_more:
            most = min(Fraction(amounts.get(other, 0)) / corpus.share(other) for other in range(len(corpus.sources)))
            raise InputError(
                f"{corpus.shown}: source {source.path} runs out before its share: it has {amount:,} of {share:,} "
                f"{corpus.unit}, {share - amount:,} are missing: give it more documents or a smaller weight, or set "
                f"{corpus.unit} to {int(most):,} or less"
            )
