"""Policies of other projects and papers, one a file, each with its source and what that leaves open."""
