"""The parts that decoder layers are made of; `architecture.py` says how a model combines them."""
