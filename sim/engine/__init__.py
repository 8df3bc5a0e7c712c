"""The simulator: a discrete-event model of a vLLM engine and of the applications that call it."""
