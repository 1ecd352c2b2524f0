"""The argument checks themselves."""

import pytest
import torch

from cgan_utils._checks import check_count, check_tensor


def test_a_length_that_is_given_may_be_0_and_one_that_is_not_may_not():
    check_tensor("x", torch.zeros(0, 3), "float", 0, 3)
    for shape in (("N", 3), (1, 3), (0, 2), (0,)):
        with pytest.raises(ValueError, match=r"x must have shape .*; got \(0, 3\)"):
            check_tensor("x", torch.zeros(0, 3), "float", *shape)


def test_counts_have_two_ends():
    check_count("n", 3, minimum=3, maximum=3)
    with pytest.raises(ValueError, match="n must be at most 3; got 4"):
        check_count("n", 4, maximum=3)
