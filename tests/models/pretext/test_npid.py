import pytest
import torch
import torch.nn.functional as F

from models.heads import pooled
from models.pretext.npid import NPID

SMALL = {"crop_size": 32, "output_dim": 8}


def embeddings(method, batch):
    with torch.no_grad():
        return F.normalize(method.head(pooled(method.backbone, method.normalise(batch.views["image"]))))


def test_loss_compares_a_row_with_its_own_place_in_the_bank_and_with_drawn_ones(build, batch_of):
    method = build(NPID, **SMALL, num_negatives=6).eval()
    batch = batch_of(method, (7, 2, 5))
    drawn = torch.randint(12, (6,), generator=torch.Generator().manual_seed(3))
    torch.manual_seed(3)
    loss = method.loss(batch, 0.0).objectives["main"].item()
    bank, own = method.bank.rows.double(), embeddings(method, batch).double()
    hit = (own * bank[[7, 2, 5]]).sum(1).div(0.07).exp()
    miss = (own @ bank[drawn].T).div(0.07).exp()
    z = 12 * torch.cat([hit, miss.flatten()]).mean()
    noise = 6 / 12
    terms = -(hit / z / (hit / z + noise)).log() - (noise / (miss / z + noise)).log().sum(1)
    assert loss == pytest.approx(terms.mean().item(), rel=1e-3)


def test_without_negatives_the_softmax_is_over_all_rows(build, batch_of):
    method = build(NPID, **SMALL, num_negatives=0).eval()
    batch = batch_of(method, (7, 2, 5))
    logits = embeddings(method, batch).double() @ method.bank.rows.double().T / 0.07
    expected = -logits.log_softmax(1)[torch.arange(3), torch.tensor([7, 2, 5])].mean()
    assert method.loss(batch, 0.0).objectives["main"].item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 1.0])
def test_the_bank_remembers_the_rows_of_the_batch(build, batch_of, momentum):
    method = build(NPID, **SMALL, num_negatives=6, bank_momentum=momentum).eval()
    batch, old = batch_of(method, (7, 2, 5)), F.normalize(method.bank.rows)
    method.bank.rows.copy_(old)
    method.loss(batch, 0.0).objectives["main"].backward()
    assert torch.equal(method.bank.rows, old)
    method.after_step(0.0)
    expected = F.normalize(momentum * old[[7, 2, 5]] + (1 - momentum) * embeddings(method, batch))
    torch.testing.assert_close(method.bank.rows[[7, 2, 5]], expected)
    others = [row for row in range(12) if row not in (7, 2, 5)]
    assert torch.equal(method.bank.rows[others], old[others])
