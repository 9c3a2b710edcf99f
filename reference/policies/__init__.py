"""Caches that are cut or rounded by a rule: declared by a provider and replayed, or simulated undeclared."""

from __future__ import annotations

from auditor.reference.policies.declared import RULES, Policy, Rule

__all__ = ["RULES", "Policy", "Rule"]
