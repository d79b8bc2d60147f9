"""Refuse a corpus with a source that gives no document. The error says the reason with its numbers."""

from collections.abc import Sequence

from exact_titan.errors import InputError
from exact_titan.packing.corpus import NO_LIMIT, Corpus, Limit
from exact_titan.packing.part_result import SourceShare
from exact_titan.packing.reasons import NO_TEXT, TOO_LONG


def check_source(corpus: Corpus, index: int, shares: Sequence[SourceShare], limit: Limit, text_key: str) -> None:
    """Check that a source gives at least one document.

    Args:
        corpus: the corpus.
        index: index of the source.
        shares: the source's contributions to the selected parts.
        limit: the limit of the source.
        text_key: the key of the text of the command line.

    Raises:
        InputError: if the source gives no document.
    """
    if any(share.documents for share in shares):
        return
    source = corpus.sources[index]
    dropped: dict[str, int] = {}
    for share in shares:
        for reason, number in share.dropped.items():
            if number:
                dropped[reason] = dropped.get(reason, 0) + number
    next_tokens = next((share.next_tokens for share in shares if share.next_tokens), 0)
    prefix = f"{corpus.shown}: source {source.path}" if corpus.shown else f"source {source.path}"
    if next_tokens or (limit != NO_LIMIT and not shares):
        raise InputError(f"{prefix} gives no document: {_too_small(corpus, index, limit, next_tokens)}")
    if dropped.keys() <= {NO_TEXT}:
        key = source.text_key or text_key
        why = f"{dropped[NO_TEXT]} documents have none under {key!r}, see --text-key" if dropped else "empty"
        raise InputError(f"{prefix}: no document with text ({why})")
    ways_out = {
        f"shorter than {source.min_document_tokens} tokens": "change min_document_tokens",
        f"longer than {source.max_document_tokens} tokens": "change max_document_tokens",
        TOO_LONG: "raise --seq-len",
    }
    reasons = ", ".join(f"{number:,} are {reason}" for reason, number in dropped.items())
    found = [way_out for reason, way_out in ways_out.items() if reason in dropped]
    way_out = ", or ".join([*found, "leave the source out"])
    raise InputError(f"{prefix} gives no document: of its {sum(dropped.values()):,} documents, {reasons}: {way_out}")


def _too_small(corpus: Corpus, index: int, limit: Limit, next_tokens: int) -> str:
    """Return the limit that the first document of the source does not fit, and the way out."""
    first = f", and its first document has {next_tokens:,} tokens" if next_tokens else ""
    shorter = "drop long documents with max_document_tokens"
    or_shorter = f", or {shorter}" if next_tokens else ""
    if limit.tokens is not None and limit.tokens == corpus.sources[index].max_tokens:
        return f"max_tokens is {limit.tokens:,}{first}: raise max_tokens, or {shorter}"
    share = f"its share of the mix is {getattr(limit, corpus.unit):,} {corpus.unit}{first}"
    if corpus.total is not None:
        return f"{share}: raise {corpus.unit}, which is {corpus.total:,}, or the weight of the source{or_shorter}"
    return f"{share}: give the other sources more documents, or this source a larger weight{or_shorter}"
