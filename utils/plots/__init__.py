"""Pictures of a run, drawn from its csv files."""
