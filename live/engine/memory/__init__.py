"""KV blocks in vLLM's pool and on the host, the copies between them, and what they are used for."""
