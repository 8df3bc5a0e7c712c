"""Workloads made from a seed: the published code writer, and deep research."""
