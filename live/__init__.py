"""Traces played on vLLM itself, and policies inside its scheduler."""
