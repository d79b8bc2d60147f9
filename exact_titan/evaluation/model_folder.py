"""The folder of one model in an evaluation: ``model.json``, ``answers/`` and ``scores/``."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from exact_titan.errors import InputError
from exact_titan.evaluation.examples import from_record
from exact_titan.system.atomic_files import write_atomically
from exact_titan.system.json_files import read_json

MODELS_FOLDER = "models"
"""Folder of the models inside the folder of an evaluation."""

FILE_NAME = "model.json"


@dataclass(frozen=True)
class EvaluatedModel:
    """A model in an evaluation.

    Attributes:
        name: name of the model in tables. The name of its folder.
        source: the run, the checkpoint or the Hugging Face folder, as the user named it, or the URL of a server.
        window: training window in tokens. None: unknown, such as a Hugging Face folder without ``--window``.
        positions: largest number of positions that the model is run with. None: unknown, such as a server.
        step: training step of the weights. None: not a run.
        weights: digest of the weights, or URL and model name of a server.
        tokenizer_sha256: digest of the ``tokenizer.json``.
    """

    name: str
    source: str
    window: int | None
    positions: int | None
    step: int | None
    weights: str
    tokenizer_sha256: str

    def check_positions(self, needed: int, what: str) -> None:
        """Refuse prompts that are longer than the positions of the model.

        Args:
            needed: number of positions of the longest prompt, with the room of the answer.
            what: the beginning of the message: the option, or the file with this prompt.

        Raises:
            InputError: naming ``what`` and the model.
        """
        if self.positions is not None and needed > self.positions:
            raise InputError(
                f"{what} {self.source} has {self.positions:,} positions (max_position_embeddings): leave this length "
                f"out, or extend RoPE with --rope.scaling yarn --rope.factor {-(-needed // self.positions)}"
            )

    def write(self, folder: Path) -> None:
        """Write ``folder/model.json`` atomically."""
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / FILE_NAME, json.dumps(asdict(self), indent=1) + "\n")


def read_model(folder: Path) -> EvaluatedModel:
    """Read ``folder/model.json``.

    Raises:
        InputError: if the folder is not the folder of a model, or if the file cannot be read.
    """
    file = folder / FILE_NAME
    try:
        record = read_json(file)
    except FileNotFoundError:
        raise InputError(
            f"{folder} has no {FILE_NAME}: name a folder that `exact-titan eval` or `exact-titan eval generate` made"
        ) from None
    except ValueError as error:
        raise InputError(f"{file} is not JSON ({error}): make the answers again") from None
    return from_record(EvaluatedModel, record, str(file))
