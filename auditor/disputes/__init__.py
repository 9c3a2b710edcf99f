"""Disputes about verdicts: filed, answered, resolved. `rules.py` is pure, `disputes.py` holds the rows.

An upheld dispute takes the audit's evidence out of the provider's standing (`schedules/standing.py`) and out
of the verdict of every report on a period that ends after it; the audit and its log entry stay.
"""
