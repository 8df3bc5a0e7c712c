"""What runs in the process of vLLM's engine core: facts out of its steps, plans into its queues and blocks."""
