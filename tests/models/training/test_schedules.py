import math

import pytest
from pydantic import ValidationError

from models.training.schedules import ScheduleConfig, scale

TOTAL, PER_EPOCH = 1000, 50


def factors(**settings):
    config = ScheduleConfig(**settings)
    return [scale(step, config=config, total_steps=TOTAL, steps_per_epoch=PER_EPOCH) for step in range(TOTAL)]


def test_cosine_is_its_closed_form():
    expected = [0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * step / TOTAL)) for step in range(TOTAL)]
    assert factors(kind="cosine", final=0.1) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("warmup", [{"warmup_steps": 100}, {"warmup_fraction": 0.1}])
def test_warmup_rises_in_equal_steps_then_the_cosine_starts_at_one(warmup):
    found = factors(**warmup)
    assert found[:100] == pytest.approx([(step + 1) / 100 for step in range(100)])
    assert found[100:] == pytest.approx([(1 + math.cos(math.pi * step / 900)) / 2 for step in range(900)])


def test_warmup_can_start_above_zero():
    found = factors(kind="constant", warmup_steps=10, warmup_start=0.5)
    assert found[:10] == pytest.approx([0.5 + 0.05 * step for step in range(1, 11)])
    assert found[10:] == [1.0] * 990


def test_steps_fall_at_the_milestones_in_epochs():
    found = factors(kind="step", milestones=(4, 10.5), gamma=0.2)
    assert found[:200] == [1.0] * 200
    assert found[200:525] == pytest.approx([0.2] * 325)
    assert found[525:] == pytest.approx([0.04] * 475)


def test_warmup_delays_no_milestone():
    found = factors(kind="step", milestones=(4,), warmup_steps=100)
    assert found[199:201] == pytest.approx([1.0, 0.1])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"warmup_steps": 1, "warmup_fraction": 0.1}, "one length"),
        ({"kind": "step", "milestones": (3, 2)}, "must rise"),
        ({"kind": "step"}, "needs some"),
        ({"kind": "cosine", "milestones": (3,)}, "belong to kind 'step'"),
        ({"kind": "linear"}, "kind"),
        ({"warm_up": 3}, "warm_up"),
    ],
)
def test_schedules_that_contradict_themselves_are_refused(wrong, message):
    with pytest.raises(ValidationError, match=message):
        ScheduleConfig(**wrong)
