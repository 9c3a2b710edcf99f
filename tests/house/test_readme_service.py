"""The README's section on the service: its commands, in two shells."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()


def test_submitting_and_curl_work_as_the_readme_says(tmp_path):
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "AUDITOR_DATABASE_URL": f"sqlite:///{tmp_path}/store.sqlite3",
        "OMP_NUM_THREADS": "1",
    }
    section = README.split("## As a service")[1].split("\n## ")[0]
    ours, curl = re.findall(r"```bash\n(.+?)```", section, flags=re.DOTALL)
    command = ["audit", "serve", "--listen", "127.0.0.1:0", "--threads", "1"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            exports = server.stdout.readline() + server.stdout.readline()
            assert re.fullmatch(r"export AUDITOR_URL=http://\S+\nexport AUDITOR_API_KEY=ak_\S+\n", exports)

            def shell(commands):
                script = f"set -eu\n{exports}\n{commands}"
                return subprocess.run(
                    ["bash", "-c", script],
                    cwd=tmp_path,
                    env=environment,
                    capture_output=True,
                    text=True,
                    check=False,
                )

            done = shell(ours)
            assert done.returncode == 0, done.stdout + done.stderr
            assert done.stdout.startswith("consistent  alpha 0.001")
            assert "  done  " in done.stdout.splitlines()[-1].replace("done       ", "done  ")
            kinds = [line.split()[1] for line in done.stderr.splitlines()[1:]]
            assert kinds[:2] == ["queued", "running"]
            assert kinds[-1] == "done"
            assert kinds.count("progress") == 8
            asked = shell(curl)
            assert asked.returncode == 0, asked.stderr
            decoder = json.JSONDecoder()
            made, end = decoder.raw_decode(asked.stdout)
            listed, _ = decoder.raw_decode(asked.stdout[end:].lstrip())
            assert made["log"]["name"] == "vllm-cpu-bf16-plain.jsonl.gz", "the same bytes are one log"
            assert listed["items"][0]["id"] == made["id"]
            (reports,) = re.findall(
                r"```bash\n(.+?)```", README.split("## Reports that can be checked")[1], flags=re.DOTALL
            )
            done = shell(reports)
            assert done.returncode == 0, done.stdout + done.stderr
            assert "verified  report rep_" in done.stdout
            assert "acme: inconsistent, grade F" in done.stdout
            for name in ("report.html", "public.zip", "assessment-results.json"):
                assert (tmp_path / name).stat().st_size > 1000
        finally:
            server.send_signal(signal.SIGTERM)
            assert server.wait(60) == 0
