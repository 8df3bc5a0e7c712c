"""The regression gate: a suite of cases, their baselines, and what differs."""
