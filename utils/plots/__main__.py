"""`python -m utils.plots RUN_FOLDER`: draw the pictures of a run again from its csv files."""

from utils.base.errors import exit_cleanly
from utils.plots.drawing import main

if __name__ == "__main__":
    exit_cleanly(main)
