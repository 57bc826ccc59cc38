import io

import pytest
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector

from models.backbones import Architecture, build_backbone
from models.pretext.base import Batch, MethodConfig, Output, ParameterGroup, PretextMethod
from models.training.loop import LoopConfig, NonFiniteLoss, TrainState, train
from models.training.optimizers import OptimizerConfig, build_optimizers
from models.training.schedules import ScheduleConfig

STEPS_PER_EPOCH = 4


class Noisy(PretextMethod):
    """A linear model with dropout, a buffer that every step moves, and a preparation of each epoch."""

    def __init__(self, **context):
        super().__init__(MethodConfig(), tiny_backbone(), num_rows=8, **context)
        self.backbone.requires_grad_(False)
        self.layer = nn.Linear(3, 1)
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("average", torch.zeros(3))
        self.register_buffer("prepared", torch.zeros(()))
        self.progress = []

    def views(self, image, draw):
        return {"x": image.float().mean((1, 2))}

    def loss(self, batch, progress):
        self.progress.append(progress)
        error = (self.layer(self.dropout(batch.views["x"])) - self.average.mean() - self.prepared) ** 2
        return Output({"main": error.mean()}, {"rows": torch.tensor(len(error))})

    def before_epoch(self, read_chunks):
        self.eval()
        self.prepared += sum(chunk.views["image"].sum() for chunk in read_chunks())

    def after_step(self, progress):
        self.average.lerp_(self.layer.weight[0], 0.1)


class Rivals(Noisy):
    """Two objectives through one graph."""

    def __init__(self):
        super().__init__()
        self.critic = nn.Linear(1, 1)

    def loss(self, batch, progress):
        made = self.layer(batch.views["x"])
        judged = self.critic(made)
        return Output({"main": judged.mean(), "critic": (judged**2).mean()})

    def parameter_groups(self):
        return {
            "main": [ParameterGroup(list(self.layer.parameters()))],
            "critic": [ParameterGroup(list(self.critic.parameters()))],
        }


def tiny_backbone():
    return build_backbone(Architecture(name="alexnet", stem="small", width=0.01))


def read_epoch(epoch, start):
    torch.rand(1)  # as a DataLoader does when it starts
    return batches(epoch, start)


def batches(epoch, start):
    for number in range(start, STEPS_PER_EPOCH):
        x = torch.randn(2, 3, generator=torch.Generator().manual_seed(100 * epoch + number))
        torch.rand(number + 1)
        yield Batch({"x": x}, torch.arange(2))


def read_chunks():
    yield Batch({"image": torch.full((2, 1), 0.25)}, torch.arange(2))


def start(cls=Noisy, *, seed=0, **optimizer):
    torch.manual_seed(seed)
    method = cls()
    return TrainState(method, build_optimizers(method, OptimizerConfig(**{"lr": 0.05, **optimizer})))


def run(state, *, reader=read_epoch, **config):
    return train(
        state,
        reader,
        config=LoopConfig(**{"epochs": 3, **config}),
        steps_per_epoch=STEPS_PER_EPOCH,
        read_chunks=read_chunks,
    )


def saved(state):
    buffer = io.BytesIO()
    torch.save(state.state_dict(), buffer)
    return buffer.getvalue()


def content(value):
    """All of a state as bytes; a pickle also tells which equal strings are one object."""
    if isinstance(value, dict):
        return {key: content(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [content(part) for part in value]
    return (value.shape, value.numpy().tobytes()) if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("optimizer", [{"name": "sgd"}, {"name": "adamw"}, {"name": "lars"}])
@pytest.mark.parametrize("stop", [1, 4, 6])
def test_killed_after_any_step_and_resumed_equals_never_stopped(stop, optimizer):
    whole = start(**optimizer)
    reports = list(run(whole))
    end = content(whole.state_dict())
    stopped = start(**optimizer)
    first = [report for _, report in zip(range(stop), run(stopped), strict=False)]
    checkpoint = saved(stopped)
    resumed = start(seed=1, **optimizer)
    resumed.load_state_dict(torch.load(io.BytesIO(checkpoint), weights_only=True))
    assert first + list(run(resumed)) == reports
    assert content(resumed.state_dict()) == end


def test_reports_count_steps_and_epochs_and_tell_the_rate():
    reports = list(run(start(), schedule=ScheduleConfig(kind="step", milestones=(1,), gamma=0.5)))
    assert [report.step for report in reports] == list(range(1, 13))
    assert [report.epoch for report in reports] == [0] * 4 + [1] * 4 + [2] * 4
    assert [report.step for report in reports if report.epoch_ends] == [4, 8, 12]
    assert [report.lr for report in reports] == pytest.approx([0.05] * 4 + [0.025] * 8)
    assert reports[0].metrics == {"rows": 2.0} and set(reports[0].losses) == {"main"}


def test_progress_is_the_share_done_and_each_epoch_is_prepared_once():
    state = start()
    list(run(state))
    assert state.method.progress == pytest.approx([step / 12 for step in range(12)])
    assert state.method.prepared == 3 * 0.5
    assert state.method.training  # although preparing switched to evaluation


def test_a_finished_training_has_no_more_steps():
    state = start()
    list(run(state))
    assert list(run(state)) == []


def test_each_objective_moves_its_own_parameters_by_its_own_gradient():
    state = start(Rivals, momentum=0.0, weight_decay=0.0)
    method, batch = state.method, next(iter(read_epoch(0, 0)))
    main, critic = method.loss(batch, 0.0).objectives.values()
    moved_by = torch.autograd.grad(main, list(method.layer.parameters()), retain_graph=True)
    moved_by += torch.autograd.grad(critic, list(method.critic.parameters()))
    parameters = [*method.layer.parameters(), *method.critic.parameters()]
    expected = [p.detach() - 0.05 * g for p, g in zip(parameters, moved_by, strict=True)]
    next(run(state, schedule=ScheduleConfig(kind="constant")))
    torch.testing.assert_close(parameters, expected)
    assert all(p.grad is None for p in method.backbone.parameters())


def test_clipping_bounds_the_gradient():
    state = start(momentum=0.0, weight_decay=0.0)
    before = parameters_to_vector(state.method.layer.parameters()).detach()
    next(run(state, clip_norm=1e-3, schedule=ScheduleConfig(kind="constant")))
    moved = parameters_to_vector(state.method.layer.parameters()) - before
    assert moved.norm().item() == pytest.approx(0.05 * 1e-3, rel=1e-3)


def test_bf16_computes_the_loss_under_autocast():
    state, seen = start(), []
    state.method.layer.register_forward_hook(lambda module, given, output: seen.append(output.dtype))
    next(run(state, precision="bf16"))
    next(run(state, precision="float32"))
    assert seen == [torch.bfloat16, torch.float32]
    assert state.method.layer.weight.dtype == torch.float32


def test_a_loss_that_is_not_finite_names_the_step_and_what_to_try():
    def reader(epoch, start):
        for number, batch in enumerate(read_epoch(epoch, start)):
            yield Batch({"x": batch.views["x"] / (0 if number == 2 else 1)}, batch.positions)

    with pytest.raises(NonFiniteLoss, match="At step 3 the loss 'main' is (nan|inf).*lower lr"):
        list(run(start(), reader=reader))
    assert issubclass(NonFiniteLoss, ValueError)


def test_a_short_epoch_is_an_error():
    with pytest.raises(ValueError, match="must give 4 batches. The reader ended after 2"):
        list(run(start(), reader=lambda epoch, start: list(read_epoch(epoch, start))[:2]))


def test_objectives_of_the_loss_and_of_the_groups_must_agree():
    state = start(Rivals)
    del state.optimizers["critic"]
    with pytest.raises(ValueError, match=r"\['main'\]. Got \['critic', 'main'\]"):
        next(run(state))
    with pytest.raises(ValueError, match="must hold the objectives"):
        state.load_state_dict(start(Rivals).state_dict())


def test_a_teacher_from_outside_is_frozen_and_stays_in_evaluation():
    class Taught(Noisy):
        needs = frozenset({"teacher"})

    teacher = nn.Sequential(nn.Linear(1, 1), nn.Dropout())
    method = Taught(teacher=teacher)
    method.train()
    assert method.training and not teacher.training and not teacher[1].training
    assert not any(p.requires_grad for p in teacher.parameters())


class Grouped(Noisy):
    """The layer in two groups."""

    def __init__(self, **settings):
        super().__init__()
        self.settings = settings

    def parameter_groups(self):
        bias = ParameterGroup([self.layer.bias], **self.settings)
        return {"main": [ParameterGroup([self.layer.weight]), bias]}


def test_groups_scale_the_settings_of_the_optimiser():
    settings = {"rate": 10.0, "decay": 0.5, "momentum": 0.0, "scheduled": False}
    method = Grouped(**settings)
    state = TrainState(method, build_optimizers(method, OptimizerConfig(lr=0.01, weight_decay=0.2)))
    next(run(state, schedule=ScheduleConfig(kind="constant", warmup_steps=2)))
    weight, bias = state.optimizers["main"].param_groups
    assert (weight["lr"], weight["weight_decay"], weight["momentum"]) == pytest.approx((0.005, 0.2, 0.9))
    assert (bias["lr"], bias["weight_decay"], bias["momentum"]) == pytest.approx((0.1, 0.1, 0.0))


def test_vectors_can_be_left_without_decay():
    groups = build_optimizers(Noisy(), OptimizerConfig(decay_vectors=False))["main"].param_groups
    assert [(group["weight_decay"], group["params"][0].ndim) for group in groups] == [(5e-4, 2), (0.0, 1)]


def test_groups_must_name_each_trained_parameter_once():
    method = Grouped()
    method.critic = nn.Linear(1, 1)
    with pytest.raises(ValueError, match="each of its 4 trained parameters once. Got 2"):
        build_optimizers(method, OptimizerConfig())


def test_momentum_of_a_group_needs_sgd():
    with pytest.raises(ValueError, match="only sgd and lars"):
        build_optimizers(Grouped(momentum=0.0), OptimizerConfig(name="adamw"))


def test_nesterov_needs_momentum():
    with pytest.raises(ValueError, match="nesterov needs sgd with momentum"):
        OptimizerConfig(nesterov=True, momentum=0.0)
