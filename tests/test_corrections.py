"""The heads that correct the fixed stage-1 classifier, against their formulas computed by hand."""

import numpy as np
import pytest
import torch

from models import build_head
from tests.heads import COUNTS, K, array, made, stirred


@pytest.mark.parametrize("kind", ["lws", "marc", "disalign"])
def test_a_correction_starts_as_exactly_the_stage_1_classifier(kind, fc, x):
    assert torch.equal(made(kind, fc)(x), fc(x))


def test_lws_scales_the_whole_logit_bias_included(fc, x):
    head = stirred("lws", fc)
    expected = array(head.scale) * (array(x) @ array(fc.weight).T + array(fc.bias))
    np.testing.assert_allclose(array(head(x)), expected, rtol=1e-12)


def test_lws_learns_the_scales_alone_or_with_the_whole_classifier(fc, x):
    alone, whole = made("lws", fc), made("lws", fc, whole=True)
    assert {name for name, _ in alone.named_parameters()} == {"scale"}
    assert {name for name, _ in whole.named_parameters()} == {"scale", "weight", "bias"}
    assert torch.equal(whole(x), alone(x)) and set(whole.state_dict()) == set(alone.state_dict())


def test_marc_equals_its_formula_away_from_the_start(fc, x):
    head, w = stirred("marc", fc), array(fc.weight)
    a, b = array(head.scale), array(head.shift)
    for image, logits in zip(array(x), array(head(x)), strict=True):
        for k in range(K):
            z = w[k] @ image + fc.bias[k].item()
            assert logits[k] == pytest.approx(a[k] * z + b[k] * np.sqrt((w[k] ** 2).sum()), rel=1e-12)


def test_disalign_equals_its_formula_away_from_the_start(fc, x):
    head, w = stirred("disalign", fc), array(fc.weight)
    s, b, v, c = map(array, (head.scale, head.shift, head.confidence_weight, head.confidence_bias))
    for image, logits in zip(array(x), array(head(x)), strict=True):
        sigma = 1 / (1 + np.exp(-(v @ image + c[0])))
        for k in range(K):
            z = w[k] @ image + fc.bias[k].item()
            assert logits[k] == pytest.approx((1 + sigma * s[k]) * z + sigma * b[k], rel=1e-12)


def test_tau_0_is_the_classifier_without_its_bias_and_tau_1_has_unit_rows(fc, x):
    assert torch.equal(made("tau_norm", fc, tau=0.0)(x), x @ fc.weight.T)
    np.testing.assert_allclose(array(made("tau_norm", fc, tau=1.0).weight.norm(dim=1)), 1, rtol=1e-12)
    assert torch.equal(made("tau_norm", fc)(x), made("tau_norm", fc, tau=1.0)(x))


def test_tau_norm_divides_each_row_by_a_power_of_its_length(fc, x):
    w = array(fc.weight)
    expected = array(x) @ (w / np.linalg.norm(w, axis=1, keepdims=True) ** 1.9).T
    np.testing.assert_allclose(array(made("tau_norm", fc, tau=1.9)(x)), expected, rtol=1e-10)


@pytest.mark.parametrize("tau", [0.0, 1.0, 1.7])
def test_logit_adjustment_subtracts_tau_log_frequency(fc, x, tau):
    prior = np.array(COUNTS) / sum(COUNTS)
    expected = array(fc(x)) - tau * np.log(prior)
    np.testing.assert_allclose(array(made("la", fc, tau=tau)(x)), expected, rtol=1e-12)


def test_logit_adjustment_refuses_a_class_without_images_and_a_wrong_number_of_counts(fc):
    with pytest.raises(ValueError, match="class 1 has no training image"):
        build_head("la", fc, [3, 0, 2, 1, 1])
    with pytest.raises(ValueError, match="class_counts must hold 5 counts"):
        build_head("la", fc, [3, 2])
