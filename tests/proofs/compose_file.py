"""docs/operations/compose.yaml against the Compose specification, and what that leaves out; `make container-files`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import yaml
from compose_spec import PyCompose


def check(path: Path) -> int:
    """Returns how many services it has.

    Raises:
        ValueError: a key, value or reference that Compose would refuse.
    """
    value = yaml.safe_load(path.read_text().replace("${POSTGRES_PASSWORD:?}", "secret"))
    compose = PyCompose.from_json(json.dumps(value))
    for what in ("", "_configs", "_networks", "_secrets", "_volumes"):
        getattr(compose, f"validate{what}")()
    services = value["services"]
    for name, service in services.items():
        missing = service.get("depends_on", {}).keys() - services.keys()
        if missing:
            raise ValueError(f"{name} depends on {', '.join(sorted(missing))}")
    return len(services)


if __name__ == "__main__":
    print(f"{check(Path(sys.argv[1]))} services, as the Compose specification has them")
