"""What a check found, as text, JSON, JUnit, Markdown and annotations."""
