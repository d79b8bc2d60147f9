"""The reasons to drop a document, and the remarks about packed documents. The manifest counts them."""

from exact_titan.documents.sources import Source
from exact_titan.documents.token_file_base import TokenFile
from exact_titan.packing.corpus import CorpusSource
from exact_titan.packing.parts import PackOptions

NO_TEXT, TOO_SHORT = "no text", "shorter than two tokens"
SPELLED = {"text": "special tokens in the text, packed as text", "ids": "special tokens in the text, packed as ids"}
TOO_LONG, UNANSWERED = "longer than the window", "messages without an answer"
INSIDE = "end-of-text ids inside the document"
MOST_INSIDE = 0.01
"""Share of a token file's documents that may have end-of-text ids inside. More documents are not documents."""
MOST_NAMES = 5
"""Number of samples longer than the window that the manifest names."""


def possible_reasons(source: CorpusSource, opened: Source | TokenFile, options: PackOptions) -> list[str]:
    """Return the possible reasons for dropping a document of a source."""
    reasons = [] if isinstance(opened, TokenFile) or options.template else [NO_TEXT]
    reasons.append(TOO_SHORT)
    if options.template:
        reasons += [TOO_LONG, UNANSWERED]
    if source.min_document_tokens is not None:
        reasons.append(f"shorter than {source.min_document_tokens} tokens")
    if source.max_document_tokens is not None:
        reasons.append(f"longer than {source.max_document_tokens} tokens")
    return reasons


def reason_to_drop(tokens: int, source: CorpusSource) -> str | None:
    """Return why a document of this number of tokens is dropped, or None."""
    if tokens < 2:
        return TOO_SHORT
    if source.min_document_tokens is not None and tokens < source.min_document_tokens:
        return f"shorter than {source.min_document_tokens} tokens"
    if source.max_document_tokens is not None and tokens > source.max_document_tokens:
        return f"longer than {source.max_document_tokens} tokens"
    return None
