"""Names of the Hugging Face hub that a user gives in the place of a file or folder."""

import re

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def hub_hint(path: str, hint: str) -> str:
    """Return ``: `` and a hint with the name at ``{}`` if the path may be a name of the hub, OWNER/NAME. Else empty."""
    return f": {hint.format(path)}" if _HUB_ID.fullmatch(path) else ""
