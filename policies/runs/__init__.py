"""Runs of policies on an engine that plays in real time, and what they came to."""
