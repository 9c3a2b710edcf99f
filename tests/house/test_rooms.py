"""The house: imports run one way, the wheel takes nobody's names, and transformers lives beside our `kernels`."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
ROOMS = ("api", "fingerprints", "kernels", "merkle", "migrations", "reference")
MAY_IMPORT = {
    "merkle": set(),
    "kernels": set(),
    "reference": {"kernels"},
    "fingerprints": {"kernels"},
    "migrations": {"auditor"},
    "auditor": {"merkle", "kernels", "reference", "fingerprints"},
    "api": {"auditor"},
}


def room_of(module):
    """`auditor.kernels.race` lies in kernels; the errors are leaves open to all."""
    parts = module.split(".")
    if parts[0] != "auditor" or module in {"auditor.errors", "auditor.commitment_errors"}:
        return None
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else "auditor"


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names if node.module == "auditor")


def sources(room):
    return [p for p in (ROOT / room).rglob("*.py") if "recipe" not in p.parts]


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_run_one_way(room):
    allowed = MAY_IMPORT[room] | {room, None}
    for path in sources(room):
        for module in imports(path):
            assert room_of(module) in allowed, f"{path.relative_to(ROOT)} imports {module}"


@pytest.mark.parametrize("room", ["merkle", "kernels"])
def test_pure_rooms_do_no_io(room):
    forbidden = {
        "os",
        "pathlib",
        "socket",
        "subprocess",
        "sqlalchemy",
        "time",
        "random",
        "secrets",
        "requests",
    }
    for path in sources(room):
        for module in imports(path):
            assert module.split(".")[0] not in forbidden, f"{path.relative_to(ROOT)} imports {module}"


def test_no_file_outgrows_four_hundred_lines():
    for room in MAY_IMPORT:
        for path in sources(room):
            assert len(path.read_text().splitlines()) <= 400, path.relative_to(ROOT)


def test_every_package_folder_is_packaged():
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    listed = set(tool["packages"])
    for room in MAY_IMPORT:
        for folder in {p.parent for p in (ROOT / room).rglob("*.py")}:
            name = ".".join(folder.relative_to(ROOT).parts)
            name = name if name.startswith("auditor") else f"auditor.{name}"
            assert name in listed, f"{name} is missing from [tool.setuptools] packages"


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        folder,
        ROOT,
    ]
    subprocess.run(command, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def test_wheel_installs_under_one_name_and_overwrites_nobody(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"auditor"}
    for other in distributions():
        if other.metadata["Name"] == "verifiable-inference-auditor":
            continue
        theirs = {str(f) for f in other.files or ()}
        assert theirs.isdisjoint(names), other.metadata["Name"]


def test_installed_wheel_works_beside_transformers_without_the_checkout(wheel, tmp_path):
    """What a user has: no checkout on the path, the rooms inside the one package, the data there too."""
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    program = """
import auditor, auditor.kernels.keyed_race, transformers
from auditor.reference.demo.prompts import TARGET, demo_conversations
from auditor.reference.model import Model
from auditor.profiles import shipped_profiles
from transformers import LlamaForCausalLM
assert auditor.__file__.startswith(SITE), auditor.__file__
assert Model.load(TARGET).config.vocab_size == LlamaForCausalLM.from_pretrained(TARGET).config.vocab_size
assert len(shipped_profiles()) >= 6 and len(demo_conversations(3, 0)) == 3
"""
    code = f"import sys; SITE = {str(site)!r}; sys.path.insert(0, SITE)\n{program}"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_our_kernels_folder_neither_shadows_nor_is_shadowed(tmp_path):
    """From the checkout's root, where `kernels/` is on the path, with and without somebody's `kernels` installed."""
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("OWNER = 'somebody else'\n")
    ours = (
        "import auditor.kernels.keyed_race, transformers\n"
        "from transformers.utils.import_utils import is_kernels_available\n"
        "from transformers import LlamaForCausalLM\n"
        "assert auditor.kernels.keyed_race.race\n"
    )
    subprocess.run([sys.executable, "-c", ours + "assert not is_kernels_available()"], cwd=ROOT, check=True)
    theirs = f"import sys; sys.path.append({str(tmp_path)!r})\nimport kernels; assert kernels.OWNER\n"
    subprocess.run([sys.executable, "-c", theirs + ours], cwd=ROOT, check=True)


def test_exported_names_are_what_the_package_offers_and_load_lazily():
    program = (
        "import sys, auditor\n"
        "assert 'torch' not in sys.modules\n"
        "assert set(auditor._HOMES) == set(auditor.__all__)\n"
        "assert all(callable(getattr(auditor, name)) for name in auditor.__all__)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
