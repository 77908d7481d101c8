"""Pools: who computes tickets."""
