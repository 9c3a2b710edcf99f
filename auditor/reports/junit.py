"""A report as JUnit XML: one suite a provider, one case a control. Pure.

Not satisfied is a failure, not determined an error: neither turns a build green.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree as ET


def report_to_junit(document: Mapping[str, Any]) -> str:
    """The report's controls as test cases."""
    root = ET.Element("testsuites", name=document["id"])
    for provider in document["providers"]:
        controls = provider["controls"]
        statuses = [control["status"] for control in controls]
        suite = ET.SubElement(
            root,
            "testsuite",
            name=provider["name"],
            timestamp=document["period"]["end"],
            tests=str(len(controls)),
            failures=str(statuses.count("not-satisfied")),
            errors=str(statuses.count("not-determined")),
        )
        for control in controls:
            case = ET.SubElement(
                suite, "testcase", classname=provider["name"], name=f"{control['id']} {control['title']}"
            )
            if control["status"] == "not-satisfied":
                ET.SubElement(case, "failure", message=control["reason"])
            elif control["status"] == "not-determined":
                ET.SubElement(case, "error", message=control["reason"])
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"
