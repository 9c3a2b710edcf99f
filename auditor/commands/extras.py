"""What a command that needs an optional package says when it is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from auditor.errors import OptionError


@contextmanager
def service_extra(command: str) -> Iterator[None]:
    """Turn a missing package of the `service` extra into one clear line.

    Raises:
        OptionError: a package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in {
            "fastapi",
            "httpx",
            "jwt",
            "prometheus_client",
            "starlette",
            "uvicorn",
        }:
            raise
        raise OptionError(
            f"`audit {command}` needs {error.name}",
            fix="pip install 'verifiable-inference-auditor[service]'",
        ) from None
