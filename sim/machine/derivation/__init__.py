"""Machines derived from a model's shape and a GPU's figures."""
