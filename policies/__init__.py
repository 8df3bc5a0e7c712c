"""Who computes, waits, stays and moves: the port between an engine and a policy, and the policies."""
