"""The cases of a suite: as TOML, as data, and where their files lie."""
