"""The needle sets and the books: those of the user's folder, or those of this package."""

import ast
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from exact_titan.errors import InputError
from exact_titan.evaluation.haystacks import read_texts
from exact_titan.evaluation.prompt_tokenizer import PromptTokenizer
from exact_titan.evaluation.suites.nolima.books import OWN_BOOKS, Book, own_books
from exact_titan.evaluation.suites.nolima.needle_sets import TEMPLATE_FILE, Question, read_needle_set
from exact_titan.evaluation.suites.nolima.tasks import Task

_OWN = Path(__file__).with_name("own")
_NEEDLE_SETS = "needlesets"
_BOOKS = "haystack/rand_shuffle"
_TEMPLATE_NAME = "DEFAULT_TASK_TEMPLATE"


@dataclass(frozen=True)
class Material:
    """Everything that the suite reads.

    Attributes:
        needle_sets: folder of the needle sets.
        books: the haystacks, in the order of their names.
        books_sha256: digest of the books.
        default_template: template of the entries without a template. None: there is no default.
        note: a sentence for reports that names the material.
    """

    needle_sets: Path
    books: tuple[Book, ...]
    books_sha256: str
    default_template: str | None
    note: str

    def questions(self, task: Task) -> tuple[Question, ...]:
        """Return the questions of a task."""
        return read_needle_set(self.needle_sets / task.file, task.rules, self.default_template)

    def sha256(self, task: Task) -> str:
        """Return the digest of everything that decides the questions of a task."""
        content = (self.needle_sets / task.file).read_bytes()
        return hashlib.sha256(content + (self.default_template or "").encode("utf-8")).hexdigest()


def read_material(folder: Path | None, tokenizer: PromptTokenizer) -> Material:
    """Read the books, and find the needle sets.

    Args:
        folder: a download of the data set amodaresi/NoLiMa (``needlesets/`` and ``haystack/rand_shuffle/``), or a clone
            of github.com/adobe-research/NoLiMa with these folders in ``data/``. None: the material of this package.
        tokenizer: the tokenizer of the model. No book may spell one of its special tokens.

    Raises:
        InputError: naming the folder or the file that is missing or cannot be used.
    """
    if folder is None:
        texts = read_texts(None, tokenizer)
        words = json.loads((_OWN / "distracting_words.json").read_text(encoding="utf-8"))
        books = tuple(own_books(texts.texts, words))
        digest = hashlib.sha256("\0".join(book.text for book in books).encode("utf-8")).hexdigest()
        note = (
            f"NoLiMa: the needle sets are those of this package, and the haystacks are {OWN_BOOKS} shuffles of "
            f"public-domain chapters. {books[0].left_out} lines with a word of a needle or a question are left out. "
            f"Scores are not comparable with the scores of the paper (arXiv 2502.05167)."
        )
        return Material(_OWN / _NEEDLE_SETS, books, digest, None, note)
    data = next((one for one in (folder, folder / "data") if (one / _NEEDLE_SETS).is_dir()), None)
    if data is None:
        raise InputError(
            f"{folder} has no folder {_NEEDLE_SETS} and no folder data/{_NEEDLE_SETS}: name a download of the data set "
            f"amodaresi/NoLiMa, or a clone of github.com/adobe-research/NoLiMa with the data (docs/nolima.md)"
        )
    texts = read_texts(data / _BOOKS, tokenizer)
    books = tuple(
        Book(Path(name).stem, text.replace("\r\n", "\n")) for name, text in zip(texts.names, texts.texts, strict=True)
    )
    note = f"NoLiMa: the needle sets and {len(books)} books are those of the folder {folder.name}."
    return Material(data / _NEEDLE_SETS, books, texts.sha256, read_default_template(folder), note)


def read_default_template(repository: Path) -> str | None:
    """Return the template that NoLiMa's own code gives to entries without ``task_template``.

    The template is under Adobe's licence and is not part of this package. The function reads the constant in a clone of
    github.com/adobe-research/NoLiMa, and runs no code of the clone. None: the folder is not a clone.
    """
    file = repository / TEMPLATE_FILE
    if not file.is_file():
        return None
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (ValueError, SyntaxError) as error:
        raise InputError(f"{file} cannot be read ({error}): clone the repository again") from None
    for node in tree.body:
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
            and [target.id for target in node.targets if isinstance(target, ast.Name)] == [_TEMPLATE_NAME]
        ):
            return node.value.value
    return None
