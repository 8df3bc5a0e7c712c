"""The engine where the KV cache has several groups of layers, each with a rule of its own."""
