"""Classifier heads that are trained over frozen features."""
