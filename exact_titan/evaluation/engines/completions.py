"""A client of ``/v1/completions``, with retries."""

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from typing import Any

from exact_titan.errors import InputError
from exact_titan.evaluation.engine_options import ServerOptions

LONGEST_PAUSE = 60.0
"""Largest number of seconds between two tries."""


class Refused(Exception):
    """The server has refused a request with an HTTP status below 500, other than 429. The text names the reason."""


class Client:
    """The API of one server.

    Args:
        options: address, key and patience.

    Raises:
        InputError: if the address is missing or is no HTTP address.
    """

    def __init__(self, options: ServerOptions) -> None:
        if options.url is None:
            raise InputError("--engine server needs --server.url, such as http://localhost:8000/v1")
        if not options.url.startswith(("http://", "https://")):
            raise InputError(f"--server.url is {options.url}: it must begin with http:// or https://")
        self.url = options.url.rstrip("/")
        self._options = options
        self._key = os.environ.get(options.api_key_env)

    def model(self) -> str:
        """Return the name of the model: that of the options, or the only model of the server.

        Raises:
            InputError: if the server has several models and the options name none.
        """
        if self._options.model is not None:
            return self._options.model
        try:
            names = [one["id"] for one in self.call("models")["data"]]
        except (Refused, KeyError, TypeError) as error:
            raise InputError(
                f"{self.url}/models gives no list of models ({error}): name the model with --server.model"
            ) from None
        if len(names) != 1:
            raise InputError(f"{self.url} has the models {', '.join(names) or 'none'}: choose one with --server.model")
        return names[0]

    def call(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Send one request, and send it again after a lost connection, HTTP 429 or HTTP 5xx.

        Returns:
            The JSON object of the response.

        Raises:
            Refused: if the server refuses the request.
            InputError: if the server cannot be reached, refuses the key, or fails in every try.
        """
        for attempt in range(self._options.retries + 1):
            try:
                return self._once(path, body)
            except urllib.error.HTTPError as error:
                reason = _reason(error)
                if error.code in (401, 403):
                    raise InputError(
                        f"{self.url}: the server refuses the key in ${self._options.api_key_env} ({reason}): set the "
                        f"variable"
                    ) from None
                if error.code != 429 and error.code < 500:
                    raise Refused(reason) from None
                wanted = error.headers.get("Retry-After", "")
            except (OSError, http.client.HTTPException, ValueError) as error:
                reason, wanted = f"{type(error).__name__}: {error}", ""
            if attempt < self._options.retries:
                time.sleep(min(float(wanted) if wanted.isdigit() else 2.0**attempt, LONGEST_PAUSE))
        raise InputError(
            f"{self.url}/{path} fails after {self._options.retries + 1} tries ({reason}): start the server, and repeat "
            f"the command, which resumes the generation"
        )

    def _once(self, path: str, body: dict[str, Any] | None) -> Any:
        headers = {
            "Content-Type": "application/json",
            **({"Authorization": f"Bearer {self._key}"} if self._key else {}),
        }
        data = None if body is None else json.dumps(body).encode("utf-8")
        request = urllib.request.Request(f"{self.url}/{path}", data=data, headers=headers)
        with urllib.request.urlopen(request, timeout=self._options.timeout) as response:
            return json.load(response)


def _reason(error: urllib.error.HTTPError) -> str:
    """Return the status and the beginning of the server's message, on one line."""
    try:
        text = error.read(2000).decode("utf-8", errors="replace")
    except (OSError, http.client.HTTPException):
        text = ""
    return f"HTTP {error.code} {' '.join(text.split())[:200]}".strip()
