"""Reports: what was played and what came of it, as data, in tables and in words."""
