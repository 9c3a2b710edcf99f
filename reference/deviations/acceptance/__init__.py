"""Providers that speculate by other rules than they say, or with bugs: simulations, never used to decode."""
