"""Parsers under random input: only clean errors or success."""

import pytest

from tests.helpers import long_form

pytest.importorskip("hypothesis")
from tests.fuzz import TARGETS, torch_alone_fails


@long_form(200, 2500)
@pytest.mark.parametrize("target", TARGETS)
def test_random_input_is_refused_in_one_line_or_read(tmp_path, target, count, record_property):
    TARGETS[target](tmp_path, count)
    record_property("found", f"{count} inputs: read, or one line that names the file or argument")


def test_without_our_reader_the_same_input_raises_other_errors(tmp_path):
    assert torch_alone_fails(tmp_path)
