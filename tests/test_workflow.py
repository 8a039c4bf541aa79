"""The workflow of GitHub Actions calls the project's own script, for the versions of Python that it takes."""

import os
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORKFLOW = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")


def test_the_workflow_runs_the_projects_own_script_and_may_change_nothing():
    steps = re.findall(r"^ +- run: (.+)$", WORKFLOW, re.MULTILINE)
    assert steps == [".ci/run"] and os.access(ROOT / steps[0], os.X_OK)
    assert re.search(r"^permissions:\n  contents: read$", WORKFLOW, re.MULTILINE)


def test_its_versions_of_python_begin_with_the_oldest_that_the_project_takes():
    versions = re.findall(r'"(3\.\d+)"', re.search(r"python: \[(.+)\]", WORKFLOW).group(1))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["requires-python"] == f">={versions[0]}" and len(versions) >= 2
