"""Tokencake: write a KV-cache policy for LLM agents once, compare it in a simulator, run it inside vLLM."""

__version__ = "0.1.0"
