"""Audits on a timetable: each slot samples a provider's new traffic, audits it, and ends in a report.

`timetable.py`, `policy.py`, `slot_rules.py` and `standing.py` are pure; `schedules.py`, `slots.py` and
`periods.py` hold the rows; `period_work.py` does what a slot asks for; `keeper.py` is the loop of a worker.
"""
