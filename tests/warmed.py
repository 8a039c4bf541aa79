"""What the process of tests/forking.py reads first."""

import evaluate  # noqa: F401
import main_stage1  # noqa: F401
import main_stage2  # noqa: F401
import tests.forking  # noqa: F401
from tests.warm import warm

warm()
