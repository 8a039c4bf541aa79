"""Classifier heads: features [N, D] -> logits [N, K]."""
