"""Processes that play for this one."""
