"""Traces that others recorded, converted into the trace format, with an account of what was left out."""
