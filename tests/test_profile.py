"""The profile of the stages: every group is there, the shares are of the whole, nothing unknown is hidden."""

from collections import Counter

import pytest
import torch
from torch.nn import functional

from benchmarks import profile


def test_the_shares_of_every_stage_sum_to_the_whole_and_convolutions_lead(capsys, tmp_path):
    profile.main(["--networks", "resnet8", "--steps", "1", "--data_dir", str(tmp_path), "--threads", "1"])
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    table = {name: cells for name, *cells in rows}
    groups = [table[f"{group}, %"] for group in profile.ORDER]
    assert len(groups[0]) == 4
    for column in zip(*groups, strict=True):
        assert sum(map(float, column)) == pytest.approx(100, abs=0.1 * len(groups))
    convolutions, augmentation = table["convolutions, %"], table["augmentation, %"]
    assert float(convolutions[0]) > 20 and convolutions[2] == "0.0"
    assert float(augmentation[0]) > 0 and float(table["optimiser, %"][0]) > 0
    assert float(table["optimiser, %"][1]) == 0  # no update in a feature pass
    assert table["convolutions, GFLOP/s (of the roof)"][2] == "-"
    assert any(line.startswith("Roofs: product of large matrices") for line in lines)


def test_an_operation_that_no_group_knows_is_named():
    found = profile.Profiled(lambda: torch.linalg.qr(torch.randn(300, 300)))
    assert isinstance(found.unknown, Counter) and found.unknown["aten::linalg_qr"] > 0
    assert found.share("other") > 0.3


def test_what_falls_on_padding_is_no_work_of_a_convolution():
    image, kernel = torch.randn(2, 3, 4, 4), torch.randn(5, 3, 3, 3, requires_grad=True)
    # along a line of 4 the outer two of 4 x 3 products fall on padding
    forward = 2 * (2 * 3 * 5) * (4 * 3 - 2) ** 2
    once = profile.Profiled(lambda: functional.conv2d(image, kernel, padding=1))
    assert once.flops == forward
    no_image = profile.Profiled(lambda: functional.conv2d(image, kernel, padding=1).sum().backward())
    assert no_image.flops == 2 * forward  # the gradient of the kernel alone
    image.requires_grad_()
    both = profile.Profiled(lambda: functional.conv2d(image, kernel, padding=1).sum().backward())
    assert both.flops == 3 * forward
    strided = profile.Profiled(lambda: functional.conv2d(image, kernel, stride=2, padding=1))
    assert strided.flops == 2 * (2 * 3 * 5) * (2 * 3 - 1) ** 2


def test_an_unknown_network_is_refused(capsys):
    with pytest.raises(SystemExit) as caught:
        profile.main(["--networks", "resnet9000"])
    assert caught.value.code == 2 and "unknown network resnet9000" in capsys.readouterr().err
