"""What runs in vLLM's workers: bytes from KV blocks to host memory and back."""
