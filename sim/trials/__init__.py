"""Many runs of a trace: what varies between them, who plays them, and what they say together."""
