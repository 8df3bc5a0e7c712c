"""The trace format, read as a stream and written: every mistake is named with its file, line and field."""
