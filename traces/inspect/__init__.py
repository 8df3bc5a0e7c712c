"""What is in a trace, in figures."""
