import copy

import pytest
import torch
from torch import nn

from models.training.lars import LARS


def layer():
    torch.manual_seed(0)
    return nn.Linear(4, 3)


def gradients(step):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(3, 4, generator=generator), torch.randn(3, generator=generator)


def train(module, optimizer, steps=5):
    for step in range(steps):
        module.weight.grad, module.bias.grad = gradients(step)
        optimizer.step()
    return module


def test_weights_move_by_the_formula_and_vectors_as_in_sgd():
    lr, momentum, decay, trust = 0.5, 0.9, 0.1, 0.02
    weight, bias = (p.detach().double() for p in layer().parameters())
    weight_velocity, bias_velocity = torch.zeros(3, 4).double(), torch.zeros(3).double()
    for step in range(5):
        weight_grad, bias_grad = gradients(step)
        change = weight_grad + decay * weight
        weight_velocity = momentum * weight_velocity + trust * weight.norm() / change.norm() * change
        bias_velocity = momentum * bias_velocity + bias_grad + decay * bias
        weight, bias = weight - lr * weight_velocity, bias - lr * bias_velocity
    module = layer()
    train(module, LARS(module.parameters(), lr=lr, momentum=momentum, weight_decay=decay, trust=trust))
    torch.testing.assert_close(module.weight.double(), weight, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(module.bias.double(), bias, atol=1e-6, rtol=1e-5)


def test_the_first_step_is_the_trusted_share_of_a_weights_length_however_large_its_gradient():
    for size in (1e-3, 1e3):
        module = layer()
        length, before = module.weight.detach().norm(), module.weight.detach().clone()
        module.weight.grad, module.bias.grad = (size * grad for grad in gradients(0))
        LARS(module.parameters(), lr=1.0, trust=0.001).step()
        assert ((module.weight.detach() - before).norm() / length).item() == pytest.approx(0.001, rel=1e-4)


def test_a_weight_of_zero_moves_as_in_sgd():
    lars, sgd = layer(), layer()
    for module in (lars, sgd):
        nn.init.zeros_(module.weight)
    train(lars, LARS(lars.parameters(), lr=0.1), steps=1)
    train(sgd, torch.optim.SGD(sgd.parameters(), lr=0.1, momentum=0.9), steps=1)
    torch.testing.assert_close(lars.weight, sgd.weight)


def test_saved_and_resumed_equals_never_stopped():
    whole = layer()
    train(whole, LARS(whole.parameters(), lr=0.3))
    first = layer()
    stopped = LARS(first.parameters(), lr=0.3)
    train(first, stopped, steps=2)
    second = copy.deepcopy(first)
    resumed = LARS(second.parameters(), lr=0.1)
    resumed.load_state_dict(stopped.state_dict())
    for step in (2, 3, 4):
        second.weight.grad, second.bias.grad = gradients(step)
        resumed.step()
    assert torch.equal(second.weight, whole.weight) and torch.equal(second.bias, whole.bias)


def test_without_a_gradient_nothing_moves():
    module = layer()
    LARS(module.parameters(), lr=1.0, weight_decay=1.0).step()
    assert torch.equal(module.weight, layer().weight)
