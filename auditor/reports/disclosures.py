"""What of a request can be shown or withheld: its prompt and its output, as bytes with a digest. Pure.

The worker keeps the digests with its evidence, a report commits to them under a salt (`commitments.py`), and
an evidence pack may hold the bytes themselves.
"""

from __future__ import annotations

import json
from typing import Any

from auditor.reports.canonical import digest
from auditor.trace import Trace


def disclosable(trace: Trace) -> dict[str, bytes]:
    """The texts of a request by field, as canonical JSON."""
    return {
        "output": _canonical({"output_token_ids": trace.output_token_ids, "text": trace.text}),
        "prompt": _canonical(
            {
                "messages": trace.messages,
                "prompt_text": trace.prompt_text,
                "prompt_token_ids": trace.prompt_token_ids,
            }
        ),
    }


def text_digests(trace: Trace) -> dict[str, str]:
    """`sha256:...` of each text."""
    return {name: digest(text) for name, text in disclosable(trace).items()}


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
