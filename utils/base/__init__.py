"""What knows nothing of the field: errors, signals, files, seeds, processes."""
