"""TF32 is allowed only inside the context that asks for it."""

from __future__ import annotations

import pytest
import torch

from kdcache.compute.precision import matmul_precision


@pytest.mark.parametrize(
    ("precision", "expected"), [("tf32", True), ("fp32", False), ("fp16", False)]
)
def test_tf32_is_allowed_where_it_is_asked_for_and_only_there(precision, expected):
    with matmul_precision(precision):
        assert (torch.get_float32_matmul_precision() == "high") is expected
        assert torch.backends.cudnn.allow_tf32 is expected


def test_an_error_leaves_the_precision_as_it_was():
    def fail() -> None:
        with matmul_precision("tf32"):
            raise KeyError("out")

    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    with pytest.raises(KeyError, match="out"):
        fail()
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before
