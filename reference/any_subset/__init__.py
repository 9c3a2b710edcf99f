"""Any-order models and their exact speculative decoding; nothing else in the runner needs them."""

from __future__ import annotations

from auditor.reference.any_subset.decoding import Decoded, decode, decode_one_by_one
from auditor.reference.any_subset.model import AnyOrderModel

__all__ = ["AnyOrderModel", "Decoded", "decode", "decode_one_by_one"]
