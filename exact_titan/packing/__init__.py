from exact_titan.packing.corpus import Corpus, CorpusSource
from exact_titan.packing.executors import Execution
from exact_titan.packing.pipeline import append, pack

__all__ = ["Corpus", "CorpusSource", "Execution", "append", "pack"]
