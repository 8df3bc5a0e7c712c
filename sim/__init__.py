"""Traces played in simulated time, and what is learned from many such runs."""
