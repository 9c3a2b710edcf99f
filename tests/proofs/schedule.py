"""Twelve weekly periods over demo providers, through kills and a restart; and a year of looks at honest ones.

    python -m tests.proofs.schedule

Six providers: two honest ones, one that serves int4 weights from week 7, one that bills a tenth too much from
week 9, one whose chat template changes in week 5, and an honest one that bills an end mark, too, from week 6. Workers are real processes; one is killed in the middle of an
audit, one in the middle of a period, one is restarted. Only the clock is a test's. Writes docs/schedules.md.
"""

from __future__ import annotations

import math
import os
import signal
import tempfile
import time
from pathlib import Path

import numpy as np
from scipy.stats import beta

from auditor.evidence import Calibration, margin_log_e
from auditor.noise_model import log_likelihoods
from auditor.profiles import shipped_profiles
from auditor.schedules.bills import TOLERATED, Bills
from auditor.schedules.standing import Margins, PeriodEvidence, standing
from tests.auditor.schedules.weeks import END_MARK, PADDED, Demo, Weeks, check, provider, traffic

PAGE = Path(__file__).parents[2] / "docs" / "schedules.md"
LAST_WEEK, REQUESTS = 12, 20
DEMOS = (
    Demo("steady"),
    Demo("calm"),
    Demo("squeeze", "weights/int4", 7),
    Demo("padder", PADDED, 9),
    Demo("retemplate", "prompt/template", 5),
    Demo("endmark", END_MARK, 6),
)
KILLED_IN_AUDIT, RESTARTED, KILLED_IN_PERIOD = 3, 6, 10
BILLS_PART = 0.2
PROVIDERS, WEEKS, WEEKLY_REQUESTS, ALPHA = 300, 52, 4, 0.05


def twelve_weeks():
    """The table of `check`, and what happened to workers."""
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/store.sqlite3"
        weeks = Weeks(url, Path(folder), DEMOS)
        with weeks.clock():
            worker = weeks.start()
            for week in range(1, LAST_WEEK + 1):
                for demo in DEMOS:
                    weeks.hand_in(f"{demo.name} week {week}", traffic(demo, week, REQUESTS))
                slot = weeks.wait_for_next_slot()
                if week == KILLED_IN_AUDIT:
                    weeks.wait_until("SELECT count(*) > 0 FROM job WHERE state = 'running'")
                    worker = killed(weeks, worker)
                if week == KILLED_IN_PERIOD:
                    weeks.wait_until("SELECT count(*) > 0 FROM slot WHERE state = 'running'")
                    worker = killed(weeks, worker)
                if week == RESTARTED:
                    weeks.wait_until("SELECT count(*) > 0 FROM job WHERE state = 'running'")
                    worker.send_signal(signal.SIGTERM)
                    assert worker.wait(60) == 0
                    worker = weeks.start()
                weeks.wait_for_reports(slot)
                print(f"week {week}: {time.process_time():.0f} s of this process's time", flush=True)
            table = check(weeks, LAST_WEEK)
            lost = weeks.rows(
                "SELECT (SELECT sum(lost_leases) FROM job), (SELECT sum(lost_leases) FROM slot)"
            )[0]
    return table, tuple(int(n) for n in lost)


def killed(weeks, worker):
    os.kill(worker.pid, signal.SIGKILL)
    worker.wait()
    return weeks.start()


def honest_year(providers=PROVIDERS, alpha=ALPHA, seed=11):
    """Of honest providers, how many the standing accuses within a year of weekly looks, and others that look."""
    grids = log_likelihoods(
        next(p for k, p in shipped_profiles().items() if k.provider_recipe == provider().recipe).honest
    )
    generator = np.random.default_rng(seed)
    accused, largest = 0, []
    for _ in range(providers):
        order = generator.permutation(len(grids))
        half = len(order) // 2
        calibration, fresh = Calibration.of_grids(grids[order[:half]]), grids[order[half:]]
        periods, peak = [], -math.inf
        for week in range(1, WEEKS + 1):
            audited = fresh[generator.integers(0, len(fresh), WEEKLY_REQUESTS)].sum(axis=0)
            own = float(margin_log_e(calibration, audited))
            margins = (Margins("p", calibration, audited),)
            periods.append(PeriodEvidence(week, own, margins, honest_bills(generator, week)))
            peak = max(peak, standing(periods, bills_part=BILLS_PART).log_e)
        accused += peak >= -math.log(alpha)
        largest.append(peak)
    upper = float(beta.ppf(0.975, accused + 1, providers - accused)) if accused < providers else 1.0
    lower = float(beta.ppf(0.025, accused, providers - accused + 1)) if accused else 0.0
    return accused, lower, upper, max(largest)


def honest_bills(generator, week):
    """The worst that honest means (`bills.py`): a law with ties and a tail, moved up from some week on."""
    habit = generator.geometric(0.4, WEEKLY_REQUESTS) - 1.0
    return Bills(tuple(habit + (TOLERATED if week > WEEKS // 4 else 0)))


def page(table, lost, year):
    names = [demo.name for demo in DEMOS]
    cells = {(name, week): (verdict, log_e) for name, week, verdict, log_e, _, _ in table}
    causes = {name: causes[0][0] for name, _, _, _, causes, _ in table if causes}
    late = [row[5] for row in table]
    lines = [
        "# Schedules, shown",
        "",
        "Made by `make schedule-proof` (tests/proofs/schedule.py): real workers on SQLite, a clock that the proof shifts.",
        "",
        f"Twelve weekly periods, Mondays at 6 in Berlin, alpha 0.001 a provider over all of them, {REQUESTS} new requests a",
        "week and provider, sampled by the plan. Cells: verdict on the provider (c consistent, ? inconclusive,",
        "**X** inconsistent) and log10 of its standing.",
        "",
        "| week | " + " | ".join(names) + " |",
        "|---|" + "---|" * len(names),
    ]
    marks = {"consistent": "c", "inconclusive": "?", "inconsistent": "**X**"}
    for week in range(1, LAST_WEEK + 1):
        row = [f"{marks[cells[n, week][0]]} {cells[n, week][1] / math.log(10):.1f}" for n in names]
        lines.append(f"| {week} | " + " | ".join(row) + " |")
    truth = ", ".join(f"{d.name}: {d.cause} from week {d.week}" for d in DEMOS if d.accused_in(LAST_WEEK))
    habits = ", ".join(
        f"{d.name} (bills an end mark from week {d.week})" for d in DEMOS if d.cause == END_MARK
    )
    accused, lower, upper, largest = year
    what_happened = (
        f"Week {KILLED_IN_AUDIT}: `kill -9` in the middle of an audit; week {RESTARTED}: restart; week "
        f"{KILLED_IN_PERIOD}: `kill -9` in the middle of a period. Leases lost: {lost[0]} by audits, {lost[1]} by "
        f"periods. Reports: {len(table)} of {len(table)}, one a period, the last {max(late):.0f} s after its slot."
    )
    accusations = (
        "Honest providers with a calibration drawn anew for each and a habit of billing that grows by "
        f"{TOLERATED} tokens in week {WEEKS // 4 + 1}, {WEEKLY_REQUESTS} requests a week, a look every week for "
        f"{WEEKS} weeks: {accused} of {PROVIDERS} accused at alpha {ALPHA:g} (95 % {lower:.4f} to "
        f"{upper:.4f}); the largest standing any of them ever had was e-value {math.exp(largest):.2g}."
    )
    lines += [
        "",
        f"What was done: {truth}; the others are honest, {habits} too. First cause named: "
        + ", ".join(f"{n}: {c}" for n, c in causes.items())
        + ".",
        "",
        what_happened,
        "",
        accusations,
        "",
    ]
    return "\n".join(lines)


def main():
    started = time.monotonic()
    table, lost = twelve_weeks()
    year = honest_year()
    print(year, flush=True)
    text = page(table, lost, year)
    PAGE.write_text(text)
    print(text)
    used = os.times()
    print(
        f"{used.user + used.system + used.children_user + used.children_system:.0f} s of processor time, "
        f"{time.monotonic() - started:.0f} s"
    )


if __name__ == "__main__":
    main()
