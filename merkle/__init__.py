"""Trees, proofs, signed notes and token commitments: pure, hashlib only, no I/O. Nothing is built yet."""
