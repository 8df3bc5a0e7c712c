"""vLLM's scheduler in closed form: stretches of iterations, who runs in them, who waits, and how long they take."""
