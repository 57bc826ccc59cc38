import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.heads import pooled
from models.pretext.moco_v1 import MoCoV1
from models.pretext.moco_v2 import MoCoV2

SMALL = {"crop_size": 32, "output_dim": 8, "queue_rows": 10}


def test_loss_finds_the_slow_copys_key_among_the_queue_as_it_was(build, batch_of):
    method = build(MoCoV1, **SMALL).eval()
    nn.init.normal_(method.slow_head[0].weight)  # a slow copy that differs
    batch, queue = batch_of(method), method.queue.rows.clone()
    first, second = method.normalise(batch.views["pair"]).unbind(1)
    with torch.no_grad():
        queries = F.normalize(method.head(pooled(method.backbone, first)).double())
        keys = F.normalize(method.slow_head(pooled(method.slow_backbone, second)).double())
    logits = torch.cat([(queries * keys).sum(1, keepdim=True), queries @ queue.double().T], dim=1) / 0.07
    expected = -logits.log_softmax(1)[:, 0].mean()
    assert method.loss(batch, 0.0).objectives["main"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert torch.equal(method.queue.rows, queue)
    method.after_step(0.0)
    torch.testing.assert_close(method.queue.rows[:4].double(), keys, atol=1e-5, rtol=0)
    assert torch.equal(method.queue.rows[4:], queue[4:]) and method.queue.next == 4


def test_the_slow_copy_follows_by_its_momentum_and_has_no_gradient(build, batch_of):
    method = build(MoCoV1, **SMALL, momentum=0.9)
    first, slow = next(method.backbone.parameters()), next(method.slow_backbone.parameters())
    assert torch.equal(first, slow) and not slow.requires_grad
    method.loss(batch_of(method), 0.0).objectives["main"].backward()
    old = slow.clone()
    with torch.no_grad():
        first.add_(1.0)
        method.after_step(0.5)
    torch.testing.assert_close(slow, old + 0.1)
    assert all(parameter.grad is None for parameter in method.slow_head.parameters())


def test_version_two_has_a_hidden_layer_without_norm_and_other_views(build):
    assert [type(module) for module in build(MoCoV1, **SMALL).head] == [nn.Linear]
    head = build(MoCoV2, **SMALL, hidden_dim=16).head
    assert [type(module) for module in head] == [nn.Linear, nn.ReLU, nn.Linear] and head[0].bias is not None
    one, two = MoCoV1.Config(), MoCoV2.Config()
    assert (one.temperature, two.temperature, two.hidden_dim) == (0.07, 0.2, 2048)
    assert one.queue_rows == two.queue_rows == 65_536 and one.momentum == two.momentum == 0.999
    assert (one.jitter[3], two.jitter[3], one.blur_probability, two.blur_probability) == (0.4, 0.1, (0, 0), (0.5, 0.5))


def test_a_batch_larger_than_the_queue_is_refused(build, batch_of):
    method = build(MoCoV1, **{**SMALL, "queue_rows": 3})
    method.loss(batch_of(method), 0.0)
    with pytest.raises(ValueError, match="Set queue_rows to the batch size or more"):
        method.after_step(0.0)
