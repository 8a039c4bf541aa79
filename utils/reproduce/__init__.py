"""Grids of runs: `python -m utils.reproduce`."""
