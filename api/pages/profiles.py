"""Calibration profiles: what honest noise verdicts are measured against."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from auditor.api.pages.layout import render
from auditor.api.pages.visits import ReadingVisit
from auditor.api.service import TheService
from auditor.profiles import shipped_profiles

router = APIRouter(include_in_schema=False)


@router.get("/profiles")
def listed(request: Request, service: TheService, visit: ReadingVisit) -> Response:
    """Those in the database, newest first, and those shipped for the demo model."""
    shipped = sorted(shipped_profiles().values(), key=lambda p: p.key.provider_recipe)
    return render(request, "profiles", visit, stored=service.store.profiles(), shipped=shipped)
