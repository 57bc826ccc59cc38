import math

import pytest
import torch
import torch.nn.functional as F

from models.contrast import MemoryBank, NoiseContrast, Queue, info_nce, nt_xent


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_nt_xent_is_its_formula_in_float64():
    first, second, temperature = unit(5, 7), unit(5, 7, seed=1), 0.3
    views = torch.cat([first, second]).double()
    terms = []
    for i in range(10):
        similarity = [math.exp(float(views[i] @ views[k]) / temperature) for k in range(10)]
        partner = (i + 5) % 10
        terms.append(-math.log(similarity[partner] / sum(similarity[k] for k in range(10) if k != i)))
    assert nt_xent(first, second, temperature=temperature).item() == pytest.approx(sum(terms) / 10, abs=1e-6)


def test_nt_xent_of_equal_embeddings_is_the_logarithm_of_the_other_views():
    same = unit(1, 4).expand(8, 4)
    assert nt_xent(same, same, temperature=0.1).item() == pytest.approx(2.70805, abs=1e-5)  # log(2 * 8 - 1)


def test_nt_xent_does_not_depend_on_the_order_of_the_views():
    first, second = unit(6, 4), unit(6, 4, seed=1)
    torch.testing.assert_close(nt_xent(first, second, temperature=0.1), nt_xent(second, first, temperature=0.1))


def test_losses_are_in_float32_within_autocast():
    first, second = unit(6, 4), unit(6, 4, seed=1)
    bank = NoiseContrast(temperature=0.1)
    exact = nt_xent(first, second, temperature=0.01), info_nce(first, second, unit(9, 4), temperature=0.01)[0]
    exact += (bank(first, second, unit(9, 4), num_rows=20),)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = nt_xent(first, second, temperature=0.01), info_nce(first, second, unit(9, 4), temperature=0.01)[0]
        found += (bank(first, second, unit(9, 4), num_rows=20),)
    assert found == exact


def test_info_nce_is_its_formula_in_float64():
    queries, keys, others = unit(3, 5), unit(3, 5, seed=1), unit(11, 5, seed=2)
    terms, nearest = [], 0
    for query, key in zip(queries.double(), keys.double(), strict=True):
        scores = [float(query @ key) / 0.2, *(float(query @ other) / 0.2 for other in others.double())]
        terms.append(math.log(sum(map(math.exp, scores))) - scores[0])
        nearest += scores[0] == max(scores)
    loss, accuracy = info_nce(queries, keys, others, temperature=0.2)
    assert loss.item() == pytest.approx(sum(terms) / 3, abs=1e-6) and accuracy.item() == pytest.approx(nearest / 3)


def test_info_nce_of_equal_embeddings_is_the_logarithm_of_all_that_is_compared():
    same = unit(1, 4).expand(65, 4)
    assert info_nce(same[:2], same[:2], same[1:], temperature=0.07)[0].item() == pytest.approx(4.17439, abs=1e-5)


def test_a_queue_replaces_the_oldest_and_comes_round():
    queue = Queue(6, 3)
    assert queue.rows.norm(dim=1).tolist() == pytest.approx([1.0] * 6)
    rows = unit(12, 3)
    for start in (0, 4, 8):  # 4 do not divide 6
        queue.push(rows[start : start + 4])
    assert queue.next == 0
    assert torch.equal(queue.rows, rows[6:])


def test_a_queue_refuses_more_than_it_holds():
    with pytest.raises(ValueError, match="Got 4 embeddings for 3 places. Set queue_rows to the batch size or more"):
        Queue(3, 2).push(unit(4, 2))


def test_a_bank_starts_at_an_expected_squared_length_of_one():
    torch.manual_seed(0)
    assert MemoryBank(4000, 128, momentum=0.5).rows.square().sum(1).mean().item() == pytest.approx(1, abs=0.01)


def test_a_bank_averages_with_its_momentum_and_keeps_unit_length():
    old, new, positions = unit(5, 4), unit(2, 4, seed=1), torch.tensor([3, 1])
    for momentum, expected in ((0.0, new), (1.0, old[positions]), (0.5, F.normalize(old[positions] + new))):
        bank = MemoryBank(5, 4, momentum=momentum)
        bank.rows.copy_(old)
        bank.update(positions, new)
        torch.testing.assert_close(bank.rows[positions], expected)
        assert torch.equal(bank.rows[[0, 2, 4]], old[[0, 2, 4]])


def test_negatives_are_drawn_from_all_rows_alike():
    bank = MemoryBank(4, 1, momentum=0.5)
    bank.rows.copy_(torch.arange(4.0)[:, None])
    torch.manual_seed(0)
    drawn = bank.draw(4000).long().flatten().bincount(minlength=4)
    assert drawn.sum() == 4000 and drawn.min() > 900


def test_the_noise_contrast_of_a_model_without_an_opinion_has_a_closed_form():
    """All scores equal, so Z makes every probability 1 / N."""
    row = unit(1, 4)
    loss = NoiseContrast(temperature=0.07)(row.expand(3, 4), row.expand(3, 4), row.expand(50, 4), num_rows=1000)
    assert loss.item() == pytest.approx(4.92196, abs=1e-4)  # log(51) + 50 log(51 / 50)


def test_the_noise_contrast_is_its_formula_in_float64():
    embeddings, positives, negatives = unit(3, 5), unit(3, 5, seed=1), unit(7, 5, seed=2)
    rows, count, temperature = 40, 7, 0.5
    contrast = NoiseContrast(temperature=temperature)
    first = contrast(embeddings, positives, negatives, num_rows=rows)
    score = lambda a, b: math.exp(float(a.double() @ b.double()) / temperature)  # noqa: E731
    own = [score(a, b) for a, b in zip(embeddings, positives, strict=True)]
    other = [[score(a, b) for b in negatives] for a in embeddings]
    constant = rows * (sum(own) + sum(map(sum, other))) / (3 + 3 * count)

    def formula(own, other):
        noise = count / rows
        hit = [-math.log(p / constant / (p / constant + noise)) for p in own]
        miss = [sum(-math.log(noise / (p / constant + noise)) for p in row) for row in other]
        return (sum(hit) + sum(miss)) / len(own)

    assert first.item() == pytest.approx(formula(own, other), rel=1e-5)
    assert contrast.log_constant.exp().item() == pytest.approx(constant, rel=1e-5)
    # Z stays what the first batch made it.
    second = contrast(embeddings, negatives[:3], positives.repeat(3, 1)[:7], num_rows=rows)
    own = [score(a, b) for a, b in zip(embeddings, negatives[:3], strict=True)]
    other = [[score(a, b) for b in positives.repeat(3, 1)[:7]] for a in embeddings]
    assert second.item() == pytest.approx(formula(own, other), rel=1e-5)
