"""Vim's two convolutions as one: every filter length, against each convolution alone; and its dtype under autocast."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from edgemamba.train.models.vim_mixer import BidirectionalMixer


@pytest.mark.parametrize("d_conv", [1, 2, 3, 4, 5])
def test_the_joined_convolution_is_the_causal_and_the_anticausal_one(d_conv: int) -> None:
    torch.manual_seed(0)
    mixer = BidirectionalMixer(6, d_state=2, d_conv=d_conv).double()
    value = torch.randn(2, 9, 12, dtype=torch.float64)
    channels_first = value.transpose(1, 2)

    def causal(x: torch.Tensor, convolution: torch.nn.Conv1d) -> torch.Tensor:
        padded = F.pad(x, (d_conv - 1, 0))
        return F.silu(F.conv1d(padded, convolution.weight, convolution.bias, groups=12))

    forwards = causal(channels_first, mixer.conv1d)
    backwards = causal(channels_first.flip(2), mixer.conv1d_b).flip(2)  # as the official code does it
    expected = torch.stack([forwards, backwards]).permute(1, 3, 0, 2)
    torch.testing.assert_close(mixer._convolve(value), expected, rtol=1e-12, atol=1e-12)


def test_under_autocast_the_scan_gets_the_narrow_type() -> None:
    mixer = BidirectionalMixer(6, d_state=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert mixer._convolve(torch.randn(2, 9, 12)).dtype == torch.bfloat16
