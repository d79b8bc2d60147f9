"""A small folder with the layout of NoLiMa's data set."""

import json
from pathlib import Path
from typing import Any

TEMPLATE = "Book:\n\n{haystack}\n\nQ: {question}\nA name:"
NAMES = ["Zora", "Yusuf", "Xenia"]


def entry(**changes: Any) -> dict[str, Any]:
    """Return an entry of a needle set. A value of None removes the field."""
    fields = {
        "id": "0101",
        "task_template": TEMPLATE,
        "needle": "Indeed, {CHAR} sleeps beside {1}.",
        "questions": {"onehop": "Who has seen {2}?", "twohop": "Who has seen {3}?", "direct": "Who sleeps at {1}?"},
        "character_set": NAMES,
        "distractors": {"onehop": "A card showed {2}.", "twohop": "A card showed {3}.", "direct": "A card showed {1}."},
        "tests": {"T1": {"input_args": ["the Louvre", "Paris", "France"]}, "T2": {"input_args": ["a", "b", "c"]}},
    }
    return {name: value for name, value in (fields | changes).items() if value is not None}


def line(number: int) -> str:
    """Return a line of a book, 12 tokens of :func:`letters_tokenizer` with its line break."""
    return f"Line {number % 10} has a few dull words about rain."


def write_folder(folder: Path, *entries: dict[str, Any], lines: int = 400, books: int = 2) -> Path:
    """Write a folder with every needle set and some books."""
    sets = folder / "needlesets"
    sets.mkdir(parents=True)
    for variant in ("", "_hard", "_w_Distractor", "_MC", "_ONLYDirect", "_w_CoT"):
        (sets / f"needle_set{variant}.json").write_text(json.dumps(list(entries or (entry(),))))
    for book in range(books):
        file = folder / "haystack" / "rand_shuffle" / f"rand_book_{book + 1}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(line(number + book) for number in range(lines)) + "\n")
    return folder
