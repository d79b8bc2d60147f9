"""Questions and documents from the published files of SQuAD and HotpotQA."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exact_titan.errors import InputError
from exact_titan.system.json_files import parse_json


@dataclass(frozen=True)
class Question:
    """A question of the file.

    Attributes:
        text: the question.
        answers: the right answers. One answer is enough.
        own: indexes of the documents of the question. A prompt has all of them.
        related: indexes of the other documents of the same article. They are the first distractors.
    """

    text: str
    answers: tuple[str, ...]
    own: tuple[int, ...]
    related: tuple[int, ...] = ()


Format = Callable[[Any], tuple[list[Question], list[str]]]
"""A function that returns the questions and the documents of the content of a file."""


def read_questions(file: Path, form: Format) -> tuple[list[Question], list[str], str]:
    """Read a file of questions.

    Args:
        file: the file.
        form: :func:`squad` or :func:`hotpotqa`.

    Returns:
        The questions in the order of the file, the documents, and the digest of the file.

    Raises:
        InputError: naming the file, if the file is not in the format or has no questions.
    """
    try:
        content = file.read_bytes()
        questions, documents = form(parse_json(content))
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise InputError(f"{file} is not in the format of {form.__name__} ({why}): name the published file") from None
    if not questions:
        raise InputError(f"{file} has no questions with an answer: name the published file")
    return questions, documents, hashlib.sha256(content).hexdigest()


def squad(content: Any) -> tuple[list[Question], list[str]]:
    """Return the questions and the documents of a SQuAD file. Questions without an answer are left out."""
    articles = [article["paragraphs"] for article in content["data"]]
    documents = sorted({paragraph["context"] for article in articles for paragraph in article})
    index = {text: number for number, text in enumerate(documents)}
    questions = []
    for article in articles:
        own_article = list(dict.fromkeys(index[paragraph["context"]] for paragraph in article))
        for paragraph in article:
            own = index[paragraph["context"]]
            related = tuple(one for one in own_article if one != own)
            for one in paragraph["qas"]:
                answers = tuple(dict.fromkeys(answer["text"] for answer in one["answers"]))
                if answers and not one.get("is_impossible", False):
                    questions.append(Question(one["question"], answers, (own,), related))
    return questions, documents


def hotpotqa(content: Any) -> tuple[list[Question], list[str]]:
    """Return the questions and the documents of a HotpotQA file."""
    contexts = [[f"{title}\n{''.join(sentences)}" for title, sentences in one["context"]] for one in content]
    documents = sorted({text for context in contexts for text in context})
    index = {text: number for number, text in enumerate(documents)}
    return [
        Question(one["question"], (one["answer"],), tuple(dict.fromkeys(index[text] for text in context)))
        for one, context in zip(content, contexts, strict=True)
    ], documents
