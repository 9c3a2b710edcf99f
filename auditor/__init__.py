"""Did the LLM provider run what it sold? Trusted replay, evidence per token, verdict at a stated error rate.

Every `audit` command is one function of this package with the same name. They are imported when first
used: a program that needs only `auditor.merkle` must not pay for torch.
"""

from __future__ import annotations

from pathlib import Path

# In a checkout the rooms lie beside this folder; in an installed wheel they lie inside it
# (docs/decisions/0001-one-import-name.md).
_CHECKOUT = Path(__file__).resolve().parent.parent
if (_CHECKOUT / "pyproject.toml").is_file() and (_CHECKOUT / "kernels").is_dir():
    __path__.append(str(_CHECKOUT))
