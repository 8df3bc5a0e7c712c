"""KV blocks on the GPU and on the host, and the copies between them."""
