"""Parsers under random input: only clean errors or success. LOS_EXAMPLES sets how many inputs each gets."""

import os

import pytest

pytest.importorskip("hypothesis")
from tests.fuzz import TARGETS, torch_alone_fails

EXAMPLES = int(os.environ.get("LOS_EXAMPLES", "200"))


@pytest.mark.parametrize("target", TARGETS)
def test_random_input_is_refused_in_one_line_or_read(tmp_path, target):
    TARGETS[target](tmp_path, EXAMPLES)


def test_without_our_reader_the_same_input_raises_other_errors(tmp_path):
    assert torch_alone_fails(tmp_path, 20)
