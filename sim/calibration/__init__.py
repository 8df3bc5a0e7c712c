"""A machine fitted to what an engine measures."""
