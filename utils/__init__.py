"""Arguments, loops, metrics, checkpoints and logs shared by the scripts."""
