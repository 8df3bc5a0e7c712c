"""Policies compared over many runs, with intervals."""
