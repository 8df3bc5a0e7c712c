"""Tokencake: the policy of the paper, and what measurements made of it."""
