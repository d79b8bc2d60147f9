"""Peak memory and time of one document of 10 million tokens, for several scripts.

A separate process tokenizes every document with the tokenizer of ``exact-titan pack``. The figures are the peak memory
of the process (VmHWM) and the time of the tokenizing. tests/documents/test_long_texts.py compares the ids with the ids
of the whole text.

Example: python -m benchmarks.long_documents --tokenizer Llama-3.1-8B
"""

import base64
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import tyro

CODE = "function f(a,b){return a.b?c[d]:e(f,1e3)}var g=[1,2,3],h={i:'j'};"
ENGLISH = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "and",
    "then",
    "all",
    "of",
    "them",
    "went",
    "home",
    "before",
    "it",
    "was",
    "dark",
    ",",
    ".",
    ";",
    "\n",
    "however",
]
CHINESE = [
    "今天",
    "天气",
    "很好",
    "我们",
    "一起",
    "去",
    "公园",
    "散步",
    "因为",
    "明天",
    "可能",
    "会",
    "下雨",
    "所以",
    "他",
    "说",
    "不要",
    "忘记",
    "带",
    "雨伞",
    "经济",
    "发展",
    "问题",
]


def _words(characters: int, words: list[str], separator: str) -> str:
    return separator.join(random.Random(0).choices(words, k=characters))[:characters]


def _base64(characters: int) -> str:
    return base64.b64encode(random.Random(0).randbytes(characters * 3 // 4 + 3)).decode()[:characters]


SCRIPTS: dict[str, Callable[[int], str]] = {
    "English": lambda n: _words(n, ENGLISH, " "),
    "Chinese": lambda n: _words(n, [*CHINESE, "，", "。"], ""),
    "Chinese without marks": lambda n: _words(n, CHINESE, ""),
    "base64": _base64,
    "minified code": lambda n: (CODE * (n // len(CODE) + 1))[:n],
    "emoji": lambda n: "".join(random.Random(0).choices("😀🚀👍🏽👨‍👩🎉", k=n)),
    "digits": lambda n: "".join(random.Random(0).choices("0123456789", k=n)),
    "spaces": lambda n: " " * n,
    "one letter": lambda n: "a" * n,
}

PROGRAM = """
import re, sys, time
from pathlib import Path
from benchmarks.long_documents import SCRIPTS
from exact_titan.documents.tokenizer import DocumentTokenizer
tokenizer = DocumentTokenizer(Path(sys.argv[1]))
text = SCRIPTS[sys.argv[2]](int(sys.argv[3]))
begin = time.perf_counter()
(ids,) = tokenizer.encode([text])
seconds = time.perf_counter() - begin
print(len(ids), seconds, int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024)
"""


def main(
    tokenizer: Path, tokens: int = 10_000_000, most_characters: int = 100_000_000, scripts: tuple[str, ...] = ()
) -> None:
    """Measure one long document of each script.

    Args:
        tokenizer: Hugging Face tokenizer: a folder, or its tokenizer.json.
        tokens: About the number of tokens of a document.
        most_characters: Most characters of a document: a token of spaces may have 128 characters.
        scripts: Names of the scripts (default: all).
    """
    from exact_titan.documents.tokenizer import DocumentTokenizer

    alone = DocumentTokenizer(tokenizer)
    print(f"tokenizer {tokenizer.resolve().name}, documents of about {tokens:,} tokens", flush=True)
    for script in scripts or SCRIPTS:
        sample = SCRIPTS[script](100_000)
        characters = min(most_characters, tokens * len(sample) // len(alone.encode([sample])[0]))
        begin = time.perf_counter()
        command = [sys.executable, "-c", PROGRAM, str(tokenizer), script, str(characters)]
        result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found, seconds, peak = map(float, re.split(r"\s+", result.stdout.strip()))
        print(
            f"{script:>22}  {characters:>12,} characters  {int(found):>12,} tokens  peak {peak:7,.0f} MiB  "
            f"{seconds:6.1f} s  (with the start {time.perf_counter() - begin:.0f} s)",
            flush=True,
        )


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
