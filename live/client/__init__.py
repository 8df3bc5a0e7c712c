"""What runs in the user's process: applications played against an engine that is started here."""
