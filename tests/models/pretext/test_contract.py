"""What every method must hold; a new file in models/pretext/ or models/transfer/ is found by itself."""

import io
import pickle

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from models.backbones import Architecture, build_backbone
from models.pretext.base import Batch, load_method, load_transfer, method_names
from models.training.loop import LoopConfig, TrainState, train
from models.training.optimizers import OptimizerConfig, build_optimizers
from models.views import Draw

TILES = {"resize": 64, "window": 63, "tile": 16, "jitter": 5, "tile_width": 8, "joint_width": 16}
# Settings that make a method small enough for a test; a new method adds its own line.
SMALL = {
    "rotation": {"crop_size": 32, "head_grid": 2},
    "jigsaw": {**TILES, "num_permutations": 10},
    "jigsaw_pp": {**TILES, "num_permutations": 10},
    "pseudo_labels": {"crop_size": 32, "head_grid": 2, "jitter": (0.4, 0.4, 0.4, 0.1)},
}
METHODS = [load_method(name) for name in method_names("models.pretext")]
METHODS += [load_transfer(name) for name in method_names("models.transfer")]
NUM_ROWS, BATCH, STEPS_PER_EPOCH, NUM_LABELS = 12, 4, 3, 5
IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (NUM_ROWS, 3, 48, 56), dtype=np.uint8))


@pytest.fixture(params=METHODS, ids=lambda cls: cls.__name__)
def cls(request):
    return request.param


def build(cls, *, seed=0):
    torch.manual_seed(seed)
    config = cls.Config(**SMALL[cls.__module__.rpartition(".")[2]])
    backbone = build_backbone(Architecture(name="alexnet_bn", stem="small", width=0.125))
    return cls(config, backbone, num_rows=NUM_ROWS, num_labels=NUM_LABELS)


def draw(row, *, epoch=0, seed=0):
    return Draw(seed, epoch=epoch, row_id=f"{row:032x}", others=lambda given: IMAGES[given.integers(0, NUM_ROWS)])


def read_batch(method, *, epoch, number):
    rows = range(number * BATCH, (number + 1) * BATCH)
    views = [method.views(IMAGES[row], draw(row, epoch=epoch)) for row in rows]
    return Batch(
        views={name: torch.stack([view[name] for view in views]) for name in views[0]},
        positions=torch.tensor(rows),
        labels=torch.tensor(rows) % NUM_LABELS,
    )


def run(state, *, steps):
    def read_epoch(epoch, start):
        torch.rand(1)  # as a DataLoader does when it starts
        for number in range(start, STEPS_PER_EPOCH):
            yield read_batch(state.method, epoch=epoch, number=number)

    steps_left = train(
        state,
        read_epoch,
        config=LoopConfig(epochs=2),
        steps_per_epoch=STEPS_PER_EPOCH,
        read_chunks=lambda: iter(()),
    )
    return [report.losses for _, report in zip(range(steps), steps_left, strict=False)]


def start(cls, *, seed=0):
    method = build(cls, seed=seed)
    return TrainState(method, build_optimizers(method, OptimizerConfig(lr=0.01)))


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


def test_loss_is_finite_and_its_gradient_reaches_the_backbone(cls):
    method = build(cls)
    output = method.loss(read_batch(method, epoch=0, number=0), 0.0)
    assert all(loss.ndim == 0 and loss.isfinite() for loss in output.objectives.values())
    output.objectives["main"].backward()
    gradients = {name: parameter.grad for name, parameter in method.backbone.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    first = next(name for name in gradients if name.endswith("weight"))
    assert gradients[first].abs().max() > 0


def test_saved_and_resumed_equals_never_stopped(cls):
    whole = start(cls)
    losses = run(whole, steps=5)
    end = content(whole.state_dict())
    stopped = start(cls)
    first = run(stopped, steps=2)  # in the middle of an epoch
    checkpoint = saved(stopped)
    resumed = start(cls, seed=1)
    resumed.load_state_dict(torch.load(io.BytesIO(checkpoint), weights_only=True))
    assert first + run(resumed, steps=3) == losses
    assert content(resumed.state_dict()) == end


def test_views_depend_on_seed_epoch_row_and_view_alone(cls):
    method = build(cls)
    expected = [method.views(IMAGES[row], draw(row)) for row in range(NUM_ROWS)]
    torch.manual_seed(9)
    np.random.seed(9)
    state = torch.get_rng_state()
    for row in reversed(range(NUM_ROWS)):
        views = method.views(IMAGES[row], draw(row))
        assert all(torch.equal(views[name], expected[row][name]) for name in expected[row])
    assert torch.equal(torch.get_rng_state(), state)
    for key in ({"epoch": 1}, {"seed": 1}):
        again = [method.views(IMAGES[row], draw(row, **key)) for row in range(NUM_ROWS)]
        assert any(not torch.equal(a[name], b[name]) for a, b in zip(again, expected, strict=True) for name in a)


def test_views_have_one_shape_for_images_of_every_size(cls):
    method = build(cls)
    views = [
        method.views(torch.zeros(3, height, width, dtype=torch.uint8), draw(0))
        for height, width in ((48, 56), (33, 130), (200, 64))
    ]
    shapes = [{name: (view.shape, view.dtype) for name, view in given.items()} for given in views]
    assert shapes[0] == shapes[1] == shapes[2]
    assert {dtype for _, dtype in shapes[0].values()} <= {torch.uint8, torch.int64}


def test_viewer_gives_the_same_views_without_the_weights(cls):
    method = build(cls)
    packed = pickle.dumps(method.viewer())
    assert len(packed) < 20_000
    views = pickle.loads(packed)(IMAGES[0], draw(0))
    expected = method.views(IMAGES[0], draw(0))
    assert all(torch.equal(views[name], expected[name]) for name in expected)
    assert list(method.parameters())


def test_unknown_config_key_is_an_error(cls):
    with pytest.raises(ValidationError, match="no_such_key"):
        cls.Config(no_such_key=1)


def test_config_does_not_change_after_loading(cls):
    with pytest.raises(ValidationError, match="frozen"):
        cls.Config().mean = (0.0, 0.0, 0.0)


def test_heads_are_parts_of_the_method(cls):
    method = build(cls)
    own = {id(module) for module in method.modules()}
    assert all(id(head) in own for head in method.heads().values())


def test_unknown_method_lists_what_exists():
    with pytest.raises(ValueError, match="Got 'no_such'.*jigsaw, jigsaw_pp, rotation"):
        load_method("no_such")
    with pytest.raises(ValueError, match="pseudo_labels"):
        load_transfer("rotation")


@pytest.mark.parametrize(
    ("context", "message"),
    [({}, "needs num_labels, which was not given"), ({"teacher": torch.nn.Identity()}, "no use for teacher")],
)
def test_what_a_method_needs_must_be_given_and_nothing_in_vain(context, message):
    cls = load_method("rotation") if context else load_transfer("pseudo_labels")
    backbone = build_backbone(Architecture(name="alexnet_bn", stem="small", width=0.125))
    with pytest.raises(ValueError, match=message):
        cls(cls.Config(), backbone, num_rows=1, **context)
