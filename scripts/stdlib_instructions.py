"""Write instructions about the functions of the Python standard library, for `exact-titan pack --sft`.

Most rows have the source of a function as context, and the first paragraph of its docstring as response. The other rows
ask for the names of the arguments. The fields are those of Dolly-15K.

Example: python scripts/stdlib_instructions.py instructions.jsonl
"""

import argparse
import ast
import json
import random
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from exact_titan import entry

SHORTEST, LONGEST = 30, 300
"""Characters of a response."""

LONGEST_SOURCE = 4000
"""Characters of a context."""

WITH_SOURCE = 0.6
"""Share of the functions that are asked with their source."""


def instructions(file: Path, draw: random.Random) -> Iterator[dict[str, str]]:
    """Yield an instruction for every public function with a docstring of a useful length."""
    text = file.read_text(errors="ignore")
    try:
        tree = ast.parse(text)
    except SyntaxError:  # a test file with broken code
        return
    lines = text.split("\n")
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
            continue
        docstring = ast.get_docstring(node) or ""
        summary = " ".join(docstring.split("\n\n")[0].split())
        if not SHORTEST <= len(summary) <= LONGEST or not summary.endswith("."):
            continue
        arguments = [one.arg for one in node.args.args if one.arg not in ("self", "cls")]
        source = source_of(node, lines)
        if draw.random() < WITH_SOURCE and len(source) < LONGEST_SOURCE:
            yield {
                "instruction": f"What does the function {node.name} do? Answer from the source code.",
                "context": source.replace(docstring, "").strip(),
                "response": summary,
            }
        elif arguments:
            yield {
                "instruction": f"Name the arguments of the function {node.name} of the Python module {file.stem}.",
                "context": "",
                "response": f"The arguments are {', '.join(arguments)}.",
            }


def source_of(node: ast.FunctionDef, lines: list[str]) -> str:
    """Return the source of a function. ``ast.get_source_segment`` would split the file again for every function."""
    assert node.end_lineno is not None
    found = [line.encode() for line in lines[node.lineno - 1 : node.end_lineno]]
    found[-1] = found[-1][: node.end_col_offset]
    found[0] = found[0][node.col_offset :]
    return b"\n".join(found).decode()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, help="file to write, .jsonl")
    parser.add_argument("--rows", type=int, default=400, help="number of instructions (default: 400)")
    options = parser.parse_args()
    draw = random.Random(0)
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    rows = [row for file in files for row in instructions(file, draw)]
    draw.shuffle(rows)
    chosen = rows[: options.rows]
    options.out.write_text("".join(json.dumps(row) + "\n" for row in chosen), encoding="utf-8")
    print(f"{options.out}: {len(chosen)} of {len(rows)} instructions")


if __name__ == "__main__":
    sys.exit(entry.run("stdlib_instructions", main))
