"""The same applications on another day, faster, or with fewer tokens."""
