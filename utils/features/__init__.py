"""Frozen features: a no-gradient pass of the backbone, kept in memory or on disk."""
