"""Baselines, CF files, scores, learned correlations and maps; works without torch."""
