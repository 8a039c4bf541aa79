"""The command line and the configuration that it gives."""
