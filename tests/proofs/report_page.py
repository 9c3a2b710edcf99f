"""The report's page in a real browser: screenshots for `docs/`, an accessibility check, and that nothing is fetched.

    make report-page

Renders the second week of the recorded rows, light and dark, opens every part of it, and runs axe-core over it. Needs
Chromium (`/usr/bin/chromium`, or AUDITOR_CHROMIUM) and, in an environment of its own, playwright and axe.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
CHROMIUM = os.environ.get("AUDITOR_CHROMIUM", "/usr/bin/chromium")
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-sync",
)
RENDER = """
import json, sys
from auditor.reports.canonical import digest
from auditor.reports.html import render_report
from tests.auditor.reports.recorded_rows import load
found = load(f"sqlite:///{sys.argv[1]}/rows.sqlite3")
body = found.both_weeks()[1]
open(f"{sys.argv[1]}/report.html", "w").write(render_report(json.loads(body), digest(body)))
"""


def check(browser, page_file, scheme):
    """Screenshot and violations of the page in one colour scheme; nothing but the file may be asked for."""
    from axe_playwright_python.sync_playwright import Axe

    context = browser.new_context(
        color_scheme=scheme, viewport={"width": 1200, "height": 900}, bypass_csp=True
    )
    page, asked = context.new_page(), []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(page_file.as_uri())
    page.screenshot(path=ROOT / "docs" / f"report-{scheme}.png")
    page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    found = Axe().run(page).response
    assert asked == [page_file.as_uri()], asked
    context.close()
    return found


def main():
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.argv[1], "-c", RENDER, folder], cwd=ROOT, check=True)
        with sync_playwright() as play:
            browser = play.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
            for scheme in ("light", "dark"):
                found = check(browser, Path(folder) / "report.html", scheme)
                worst = [v["impact"] for v in found["violations"]]
                print(f"{scheme}: {len(found['passes'])} rules pass, {len(worst)} are violated {worst}")
                for violation in found["violations"]:
                    print(json.dumps({k: violation[k] for k in ("id", "impact", "help")}))
                assert not {"serious", "critical"} & set(worst)
            browser.close()


if __name__ == "__main__":
    main()
