"""The packed dataset: its format on the disk, its writer, its reader and its check.

Writing:

1. A policy (:mod:`policies`) assigns every input of every document to a window. A policy reads only the lengths of the
   documents.
2. :mod:`writer` stores the windows of a split in shards (:mod:`shards`), and stores the documents' lengths
   (:mod:`lengths`).
3. :mod:`work` stores the attention work of every window, so a run balances its steps without opening the shards.
4. :mod:`manifest` writes ``manifest.json`` last. A folder without a manifest is not a dataset.

Reading: :mod:`dataset` gives any window of a split, and :mod:`verify` checks a whole dataset. Reading needs only torch
and numpy.

Words: a *window* has ``window`` inputs (``--seq-len``). An *input* is a token that the model reads. The *target* or
*label* of an input is the next token of the same document. A *segment* is a sequence of consecutive inputs of one
document inside one window. A *shard* is one file of windows. *Padding* is the inputs at the end of a window that belong
to no document.

The package imports ``exposure``, ``documents.tokenizer_record`` and ``errors`` from exact_titan, and nothing else.
"""

from exact_titan.dataset.dataset import PackedDataset
from exact_titan.dataset.manifest import Manifest

__all__ = ["Manifest", "PackedDataset"]
