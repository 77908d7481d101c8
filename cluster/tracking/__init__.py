"""Tracking: where the numbers of a run go."""
