"""Fields that our wire formats share, for Pydantic: bytes as base64, digests, objects read to the letter."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from auditor.merkle.encoding import decode_base64


def _base64(value: object) -> bytes:
    data = decode_base64(value) if isinstance(value, str) else None
    if data is None:
        raise ValueError("is not base64")
    return data


Bytes = Annotated[bytes, BeforeValidator(_base64)]
Hash = Annotated[Bytes, Field(min_length=32, max_length=32)]


class Exact(BaseModel):
    """An object without unknown fields or converted types."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
