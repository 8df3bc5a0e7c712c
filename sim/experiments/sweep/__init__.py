"""Policies at every point of a grid of loads and machines."""
