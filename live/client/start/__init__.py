"""vLLM as it is started in this process: its arguments, its memory, and a model without weights."""
