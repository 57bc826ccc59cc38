import math

import pytest
import torch
from torch import nn

from models.momentum import follow, rising_momentum, slow_copy


def test_a_slow_copy_is_equal_and_has_no_gradient():
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    network[1].running_mean.fill_(5.0)
    copied = slow_copy(network)
    assert not any(p.requires_grad for p in copied.parameters()) and all(p.requires_grad for p in network.parameters())
    for name, value in network.state_dict().items():
        assert torch.equal(copied.state_dict()[name], value)
        assert copied.state_dict()[name].data_ptr() != value.data_ptr()


@pytest.mark.parametrize("momentum", [0.0, 0.9, 1.0])
def test_following_moves_parameters_and_no_buffers(momentum):
    network = nn.BatchNorm1d(3)
    copied = slow_copy(network)
    before = copied.weight.clone()
    nn.init.normal_(network.weight)
    network.running_mean.fill_(5.0)
    follow(copied, network, momentum=momentum)
    torch.testing.assert_close(copied.weight, momentum * before + (1 - momentum) * network.weight.detach())
    assert copied.running_mean.abs().max() == 0
    assert momentum < 1 or torch.equal(copied.weight, before)


def test_the_momentum_rises_from_its_start_to_one_along_a_cosine():
    assert rising_momentum(0.996, progress=0.0) == pytest.approx(0.996)
    assert rising_momentum(0.996, progress=1.0) == 1.0
    for step in range(10):
        expected = 1 - (1 - 0.99) * (math.cos(math.pi * step / 10) + 1) / 2
        assert rising_momentum(0.99, progress=step / 10) == pytest.approx(expected)
