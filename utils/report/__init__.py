"""What a run prints and writes about itself."""
