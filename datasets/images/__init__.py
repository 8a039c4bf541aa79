"""Images on their way into a network: in memory or on disk, plain or augmented."""
