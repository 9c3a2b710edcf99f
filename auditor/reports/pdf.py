"""A report as PDF, with the digest of `report.json` on every page: the JSON is what is signed, not this."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from auditor.errors import OptionError
from auditor.reports.html import render_report


def render_pdf(document: Mapping[str, Any], digest: str) -> bytes:
    """The page of a report, printed.

    Raises:
        OptionError: the `pdf` extra or Pango is not installed.
    """
    try:
        from weasyprint import HTML  # noqa: PLC0415  # heavy, and an extra
    except (ImportError, OSError):  # OSError: Pango is not there
        fix = "pip install 'verifiable-inference-auditor[pdf]', and Pango from the system's packages"
        raise OptionError("printing needs WeasyPrint", where="pdf", fix=fix) from None
    footer = (
        f"<style>@page{{@bottom-left{{content:'report.json {digest}';font:7pt monospace}}"
        "@bottom-right{content:counter(page) ' / ' counter(pages);font:7pt monospace}}"
        "body{font-size:9pt}h1{font-size:20pt}table{font-size:8pt}th,td{padding:3pt 5pt}</style></head>"
    )
    page = _paper(render_report(document, digest)).replace("</head>", footer, 1)
    return bytes(HTML(string=page, url_fetcher=_refuse).write_pdf())


def _refuse(url: str, *_: object) -> dict[str, Any]:
    raise ValueError(f"a report fetches nothing: {url[:80]}")


def _paper(page: str) -> str:
    """The page with light colours written out: drawings in a PDF know no variables."""
    css = (files("auditor") / "templates" / "colours.css").read_text(encoding="utf-8")
    light = css[css.index(":root{") : css.index("}")]
    colours = dict(re.findall(r"--([\w-]+):(#[0-9a-f]+)", light))
    return re.sub(r'="var\(--([\w-]+)\)"', lambda m: f'="{colours[m[1]]}"', page)
