"""The two question answering tasks: a question about some of many documents, from a file that the user names.

The rules are those of NVIDIA/RULER, ``scripts/data/synthetic/qa.py``. Example ``k`` is question ``k`` of the file.
"""

from collections.abc import Sequence
from pathlib import Path
from random import Random

from exact_titan.errors import InputError
from exact_titan.evaluation.filling import LEAST
from exact_titan.evaluation.prompt_tokenizer import PromptTokenizer
from exact_titan.evaluation.suites.ruler.drafts import Cell, Draft
from exact_titan.evaluation.suites.ruler.qa_files import Format, read_questions

ROOM = 32

_INSTRUCTION = (
    "Answer the question based on the given documents. Only give me the answer and do not output any other words."
)
_BEFORE = f"{_INSTRUCTION}\n\nThe following are given documents.\n\n"
_AFTER = f"\n\n{_INSTRUCTION}\n\nQuestion: "
_ANSWER_PREFIX = " Answer:"
_CANDIDATES = 256
_TRIES = 4


class Documents:
    """The questions and the documents of a file.

    Args:
        file: the file.
        form: the format of the file.
        tokenizer: the tokenizer of the model.
        examples: number of questions that the prompts need.

    Attributes:
        sha256: digest of the file.

    Raises:
        InputError: naming the file, if the file is not in the format, has too few questions, or has a text that spells
            a special token of the tokenizer.
    """

    def __init__(self, file: Path, form: Format, tokenizer: PromptTokenizer, examples: int) -> None:
        self._questions, self._documents, self.sha256 = read_questions(file, form)
        if (number := len(self._questions)) < examples:
            raise InputError(f"{file} has {number} questions with an answer: name --examples {number} or fewer")
        texts = "\n".join([*self._documents, *(one.text for one in self._questions)])
        if token := tokenizer.special_token_in(texts):
            raise InputError(f"{file}: a text spells the special token {token}: remove the token from the file")
        self._tokenizer, self._sizes = tokenizer, dict[int, int]()

    def draft(self, rng: Random, cell: Cell, index: int) -> Draft:
        """Return question ``index`` of the file."""
        question = self._questions[index]
        taken = {*question.own, *question.related}
        others = [one for one in range(len(self._documents)) if one not in taken]
        distractors = rng.sample(question.related, len(question.related)) + rng.sample(others, len(others))
        order = rng.getrandbits(64)

        def context(count: int, _: int) -> str:
            documents = [*question.own, *chosen[:count]]
            Random(order).shuffle(documents)
            return "\n\n".join(
                f"Document {number}:\n{self._documents[one]}" for number, one in enumerate(documents, start=1)
            )

        def tokens(count: int) -> int:
            body = f"{_BEFORE}{context(count, 0)}{_AFTER}{question.text}"
            return cell.tokenizer.count(cell.tokenizer.wrap(body, _ANSWER_PREFIX))

        limit, chosen, bias = cell.length - cell.room, list[int](), 0
        fixed = tokens(0)
        for _ in range(_TRIES):
            chosen = self._choose(distractors, limit - fixed - bias, tolerance=limit // 200)
            filled = tokens(len(chosen))
            if LEAST * limit <= filled <= limit:
                break
            bias = filled - fixed - sum(self._sizes[one] for one in chosen)  # sizes do not add up exactly
        return Draft(
            context=context,
            sizes=[self._sizes[one] for one in chosen],
            fewest=0,
            before=_BEFORE,
            after=f"{_AFTER}{question.text}",
            answer_prefix=_ANSWER_PREFIX,
            references=question.answers,
            gold=question.answers[0],
        )

    def _choose(self, distractors: Sequence[int], budget: int, *, tolerance: int) -> list[int]:
        """Return the first distractors that fill a number of tokens. The size decides the last one.

        Documents are large. The last document is therefore the one among the next distractors that leaves the fewest
        tokens. If each of them leaves many tokens, it replaces up to three documents before it.

        Args:
            distractors: the documents in their random order.
            budget: number of tokens to fill. ``tolerance`` tokens of it stay free, because sizes do not add up exactly.
            tolerance: number of further tokens that may stay free.
        """
        known = distractors[: max(budget, 0) // 32 + _CANDIDATES]  # documents have more than 32 tokens on average
        self._measure(known)
        left = budget - tolerance
        fitting = 0
        while fitting < len(known) and self._sizes[known[fitting]] <= left:
            left -= self._sizes[known[fitting]]
            fitting += 1
        best, free = list(known[:fitting]), left
        for kept in range(fitting, max(fitting - 4, -1), -1):
            small = [one for one in known[fitting : fitting + _CANDIDATES] if self._sizes[one] <= left]
            last = max(small, key=self._sizes.__getitem__, default=None)
            if last is not None and left - self._sizes[last] < free:
                best, free = [*known[:kept], last], left - self._sizes[last]
            if free <= tolerance:
                break
            left += self._sizes[known[kept - 1]] if kept else 0
        return best

    def _measure(self, documents: Sequence[int]) -> None:
        new = [one for one in documents if one not in self._sizes]
        texts = [f"Document 10:\n{self._documents[one]}\n\n" for one in new]
        self._sizes.update(zip(new, self._tokenizer.counts(texts), strict=True))
