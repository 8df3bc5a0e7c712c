"""The process of a command: its terminal, the signals that end it, and its exit code."""
