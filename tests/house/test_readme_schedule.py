"""The README's section on schedules and disputes: its commands, and what comes of them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()


def test_a_schedule_runs_as_the_readme_says_and_its_audit_can_be_disputed(tmp_path):
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "AUDITOR_DATABASE_URL": f"sqlite:///{tmp_path}/store.sqlite3",
        "OMP_NUM_THREADS": "1",
    }
    section = README.split("## On a timetable")[1].split("\n## ")[0]
    (commands,) = re.findall(r"```bash\n(.+?)```", section, flags=re.DOTALL)
    command = ["audit", "serve", "--listen", "127.0.0.1:0", "--threads", "1"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            exports = server.stdout.readline() + server.stdout.readline()

            def shell(script):
                return subprocess.run(
                    ["bash", "-c", f"set -u\n{exports}\n{script}"],
                    cwd=tmp_path,
                    env=environment,
                    capture_output=True,
                    text=True,
                    check=False,
                )

            done = shell(f"set -e\n{commands}")
            assert done.returncode == 0, done.stdout + done.stderr
            log, period, listed = done.stdout.splitlines()
            assert log.startswith("log_")
            assert period.startswith("slt_")
            schedule = listed.split()[0]
            deadline = time.monotonic() + 300
            while (shown := shell(f"audit schedule show {schedule}")).returncode == 2:
                assert time.monotonic() < deadline, shown.stdout + shown.stderr
                time.sleep(1)
            # The sample is drawn by a secret seed, and some samples are a few tokens short of the power asked for.
            assert shown.returncode in (0, 3), shown.stdout
            assert " consistent" in shown.stdout or "too small a sample" in shown.stdout
            value = json.loads(shell(f"audit schedule show {schedule} --format json").stdout)
            (found,) = value["periods"]
            assert found["drawn"]["sampled_tokens"] <= found["drawn"]["tokens"] == 8875
            said = '--by Jo --statement "contested"'
            filed = shell(f"audit dispute file {found['audit']} {said} --evidence {found['audit']}/0")
            dispute = filed.stdout.strip()
            assert shell(f"audit dispute answer {dispute} {said}").stdout == "answered\n"
            assert shell(f"audit dispute resolve {dispute} rejected {said}").stdout == "rejected\n"
            assert "rejected" in shell("audit dispute list").stdout
            assert shell(f"audit dispute show {dispute}").stdout.count("by Jo: contested") == 3
            assert shell(f"audit schedule pause {schedule}").stdout == "paused\n"
            assert shell(f"audit schedule resume {schedule}").stdout.startswith("20")
            assert shell(f"audit schedule remove {schedule}").returncode == 0
            assert shell("audit schedule list").stdout == ""
            (tmp_path / "wrong.toml").write_text('schema = "auditor.policy/v1"\nname = ""\nalpha = 7.0\n')
            wrong = shell('audit schedule add --cron "0 6 * * 1" --provider a --policy wrong.toml')
            assert wrong.returncode == 2
            assert len(wrong.stderr.splitlines()) == 3, "one line for each error"
        finally:
            server.send_signal(signal.SIGTERM)
            assert server.wait(60) == 0
