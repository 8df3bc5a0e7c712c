"""The host half of a policy inside vLLM's own CPU tier: what stays there and what goes, without our scheduler."""
