"""Trees, proofs, signed notes and token commitments: pure, no I/O. `README.md` is the map."""
