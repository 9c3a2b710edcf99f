"""The trusted runner: weights, replay, noise schemes, sampling rules, and every simulated dishonest one."""
