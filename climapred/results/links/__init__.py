"""Learned links: the adjacency as data, what it tells, how sure that is, and its figures."""
