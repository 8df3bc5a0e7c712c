"""What was asked for, what happened, and what it came to."""
