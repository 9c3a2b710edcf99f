"""The TOPLOC package, built from the sources in its wheel against the torch at hand: its binaries want an older one.

python tests/bench/build_toploc.py .toploc
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

from torch.utils.cpp_extension import include_paths, library_paths

VERSION = "0.1.6"


def main():
    target = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        subprocess.run([*pip, f"toploc=={VERSION}", "-d", folder], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked := Path(folder) / "unpacked")
        compile_all(unpacked / "toploc" / "C" / "csrc")
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(unpacked, target)


def compile_all(sources):
    """Replace the wheel's binaries by ones that fit the torch at hand."""
    for stale in sources.glob("*.so"):
        stale.unlink()
    for source in sorted(sources.glob("*.cpp")):
        binary = source.with_suffix(sysconfig.get_config_var("EXT_SUFFIX"))
        command = ["g++", "-O3", "-shared", "-fPIC", "-std=c++20", "-fopenmp", str(source), "-o", str(binary)]
        command += ["-DTORCH_API_INCLUDE_EXTENSION_H", f"-DTORCH_EXTENSION_NAME={source.stem}"]
        command += ["-I", sysconfig.get_paths()["include"]]
        command += [part for path in include_paths() for part in ("-isystem", path)]
        command += [part for path in library_paths() for part in (f"-L{path}", f"-Wl,-rpath,{path}")]
        subprocess.run([*command, "-lc10", "-ltorch_cpu", "-ltorch", "-ltorch_python"], check=True)


if __name__ == "__main__":
    main()
