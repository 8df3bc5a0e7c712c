"""The trace format and events files, read as streams and written: mistakes are named with file, line and field."""
