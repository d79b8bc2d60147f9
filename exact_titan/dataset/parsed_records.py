"""The records of a packed dataset, read from JSON that another person may have written."""

import dataclasses
from pathlib import Path
from typing import Any

from exact_titan.system.typed_values import Rules, parse_typed

AGAIN = "copy the dataset again or pack it again"

_RULES = Rules(
    # Datasets of older versions lack some lists and tables that are empty by default.
    may_lack=lambda field: field.default_factory is not dataclasses.MISSING,
    other_names=True,
    least=0,
    only_unicode=True,
)


def parse_record(kind: type[Any], value: Any, file: Path) -> Any:
    """Convert a JSON value to the dataclass ``kind``. Every integer of a packed dataset is 0 or more.

    Raises:
        InputError: if the value does not fit. The error names ``file`` and the key.
    """
    return parse_typed(kind, value, str(file), way_out=AGAIN, rules=_RULES)
