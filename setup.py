"""`pip install .` ends here, in one line instead of setuptools' list of top-level packages."""

raise SystemExit(
    "nothing to install: this is a repository of scripts, which run where they lie after `pip install -r "
    "requirements.txt`; the loss alone is losses/label_over_smooth.py, copy that file, it needs only torch"
)
