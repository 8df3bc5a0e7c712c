"""The same against an engine behind HTTP, and the command that starts such a server."""
