"""Training steps and passes over images."""
