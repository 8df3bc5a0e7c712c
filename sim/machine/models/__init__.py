"""Shapes of models: what their layers hold and compute, read from configuration files."""
