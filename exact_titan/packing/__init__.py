"""Packing: from documents to a packed dataset.

:func:`pack` makes a dataset. :func:`append` adds documents to a dataset.

1. :mod:`corpus` reads the corpus: the sources with their filters, limits and weights.
2. :mod:`parts` divides the corpus into parts. The parts depend only on the sources. :mod:`doubles` refuses files that
   would be packed twice.
3. :mod:`executors` packs the parts in tasks, on this machine (:mod:`local_workers`), with Slurm or with Ray
   (:mod:`clusters`). :mod:`tasks` is the work of one process. :mod:`failures` names the part of a process that was
   killed. :mod:`interrupt` ends a process at once.
4. :mod:`part` packs one part: read the documents (:mod:`part_reader`), tokenize them (:mod:`threads`), filter them
   (:mod:`reasons`), and write their windows to shards. :mod:`changes` refuses a part whose files have changed.
   :mod:`part_result` is the record of the part. :mod:`work_folder` keeps every finished part until the dataset is
   complete. :mod:`progress` shows the progress of all tasks.
5. :mod:`selection` selects the parts of each source up to the source's limit. If a limit ends inside a part, this part
   is packed again with fewer documents. :mod:`empty_sources` refuses a source that gives no document.
6. :mod:`merge` moves the shards of the selected parts into the dataset. No token is read again.

:mod:`pipeline` calls these steps in order, after :mod:`checks` has checked the options.

Words: a *part* is the unit of work of a task: some files, or some documents of a token file. A *piece* is one file, or
one range of a token file's documents, of a part. A *task* packs several parts, one after another. A *limit* is the
maximum number of tokens and documents of a source. A *mix* is a corpus in which every source has a weight.

The package imports ``documents``, ``dataset``, ``errors`` and ``slurm_options`` from exact_titan.
"""

from exact_titan.packing.corpus import Corpus, CorpusSource
from exact_titan.packing.executors import Execution
from exact_titan.packing.pipeline import append, pack

__all__ = ["Corpus", "CorpusSource", "Execution", "append", "pack"]
