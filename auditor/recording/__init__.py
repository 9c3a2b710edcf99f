"""Recording what OpenAI-compatible servers answer: what `audit record` and `audit probe` share."""
