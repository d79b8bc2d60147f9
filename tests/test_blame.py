"""A file that the system does not let the process read is not called damaged, and no message advises to remove it."""

import ast
import errno
import io
import json
import re
from pathlib import Path

import pytest

from exact_titan.evaluation.model_folder import read_model
from exact_titan.evaluation.record_files import read_header
from exact_titan.models.hf_config import read_config
from exact_titan.models.hf_weights import check_weights
from exact_titan.runs.locations import checkpoints_of
from exact_titan.runs.run_record import read_record
from exact_titan.runs.target_losses import read_target_losses, target_losses_file
from exact_titan.runs.weights_digest import weights_digest
from exact_titan.study.results import read_study_file

_PACKAGE = Path(__file__).parents[1] / "exact_titan"

_READERS = {
    "run.json": read_record,
    "config.json": read_config,
    "model.json": read_model,
    "study.json": read_study_file,
    "checkpoints.json": checkpoints_of,
    "answers.jsonl": lambda folder: read_header(folder / "answers.jsonl"),
    "model.safetensors": weights_digest,
    "other.safetensors": lambda folder: check_weights(folder, None),
    "validation/step-1.safetensors": lambda folder: read_target_losses(folder, 1),
}
"""A reader of the package for every kind of file of a run, a model and a study."""


@pytest.mark.parametrize("name", _READERS)
@pytest.mark.parametrize("cause", [errno.EACCES, errno.EIO, errno.ESTALE, errno.EMFILE])
def test_an_error_of_the_system_reaches_the_entry_point(tmp_path, monkeypatch, name, cause):
    """The entry point then says the cause and the way out (tests/test_file_errors.py)."""
    assert target_losses_file(tmp_path, 1) == tmp_path / "validation/step-1.safetensors"
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"folder": "."}))
    opened = io.open

    def refuse(path, *arguments, **options):
        if not isinstance(path, int) and Path(path) == file:
            raise OSError(cause, "the cause", str(file))
        return opened(path, *arguments, **options)

    monkeypatch.setattr(io, "open", refuse)
    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(OSError, match="the cause"):
        _READERS[name](tmp_path)


def test_no_message_advises_to_remove_a_file():
    """The subject of the advice is the user's own text, such as a line of a corpus or a key of a config."""
    advice = re.compile(
        r"\b(or|: |; |and) ?(remove|delete|rm)\b (?!the (row|line|token|character|link)|factor|one of )"
    )
    found = []
    for source in sorted(_PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Raise) and node.exc is not None:
                text = "".join(
                    one.value
                    for one in ast.walk(node.exc)
                    if isinstance(one, ast.Constant) and isinstance(one.value, str)
                )
                if advice.search(text):
                    found.append((source.name, node.lineno, text))
    assert found == []
