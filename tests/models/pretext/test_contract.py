"""What every method must hold; a new file in models/pretext/ or models/transfer/ is found by itself."""

import io
import math
import pickle
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from models.backbones import Architecture, build_backbone
from models.pretext.base import Batch, load_method, load_transfer, method_names
from models.training.loop import LoopConfig, TrainState, train
from models.training.optimizers import OptimizerConfig, build_optimizers, set_lr
from models.views import Draw
from storage.encoders import Encoder
from storage.folder import Folder
from tasks.extract_features import load_backbone
from tasks.training import TrainingConfig, keep_encoder

PAIR = {"crop_size": 32, "output_dim": 8}
CROPS = {"large_size": 32, "small_size": 16, "num_small": 2, "hidden_dim": 16}
TILES = {"resize": 64, "window": 63, "tile": 16, "jitter": 5, "tile_width": 8, "joint_width": 16}
# Settings that make a method small enough for a test; a new method adds its own line.
SMALL = {
    "rotation": {"crop_size": 32, "head_grid": 2},
    "jigsaw": {**TILES, "num_permutations": 10},
    "jigsaw_pp": {**TILES, "num_permutations": 10},
    "simclr": {**PAIR, "hidden_dim": 16},
    "moco_v1": {**PAIR, "queue_rows": 10},
    "moco_v2": {**PAIR, "queue_rows": 10, "hidden_dim": 16},
    "simsiam": {**PAIR, "predictor_dim": 8},
    "byol": {**PAIR, "hidden_dim": 16},
    "barlow_twins": PAIR,
    "npid": {**PAIR, "num_negatives": 6},
    "pirl": {**PAIR, "window": 63, "patch": 16, "patch_shift": 5, "num_negatives": 6},
    "swav": {**CROPS, "output_dim": 8, "num_prototypes": 6, "queue_rows": 5, "queue_from": 0.5},
    "dino": {**CROPS, "bottleneck_dim": 8, "num_outputs": 12},
    "pseudo_labels": {"crop_size": 32, "head_grid": 2, "jitter": (0.4, 0.4, 0.4, 0.1)},
}
# The others aim at what moves with them: a queue, a bank, a slow copy, codes.
FIXED_AIM = {"rotation", "jigsaw", "jigsaw_pp", "pseudo_labels", "simclr", "simsiam", "barlow_twins"}
LARGE_TILES = {
    "jigsaw": {"resize": 256, "window": 255, "tile": 64},
    "jigsaw_pp": {"resize": 256, "window": 255, "tile": 64},
    "pirl": {"window": 255, "patch": 64},
    "swav": {"small_size": 96},
    "dino": {"small_size": 96},
}
SIZES = {"crop_size", "large_size"}
METHODS = [load_method(name) for name in method_names("models.pretext")]
METHODS += [load_transfer(name) for name in method_names("models.transfer")]
NUM_ROWS, BATCH, STEPS_PER_EPOCH, NUM_LABELS = 12, 4, 3, 5
IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (NUM_ROWS, 3, 48, 56), dtype=np.uint8))


@pytest.fixture(params=METHODS, ids=lambda cls: cls.__name__)
def cls(request):
    return request.param


def name_of(cls):
    return cls.__module__.rpartition(".")[2]


def build(cls, *, seed=0, **settings):
    torch.manual_seed(seed)
    config = cls.Config(**{**SMALL[name_of(cls)], **settings})
    backbone = build_backbone(Architecture(name="alexnet_bn", stem="small", width=0.125))
    return cls(config, backbone, num_rows=NUM_ROWS, num_labels=NUM_LABELS)


def draw(row, *, epoch=0, seed=0):
    return Draw(seed, epoch=epoch, row_id=f"{row:032x}", others=lambda given: IMAGES[given.integers(0, NUM_ROWS)])


READ = {}


def read_batch(method, *, epoch, number, size=BATCH):
    """A batch, read once for all tests: what is drawn is always the same, as a test below says."""
    key = (type(method), method.config.model_dump_json(), epoch, number, size)
    if key not in READ:
        READ[key] = make_batch(method, epoch=epoch, rows=range(number * size, (number + 1) * size))
    return READ[key]


def make_batch(method, *, epoch, rows):
    views = [method.views(IMAGES[row], draw(row, epoch=epoch)) for row in rows]
    return Batch(
        views={name: torch.stack([view[name] for view in views]) for name in views[0]},
        positions=torch.tensor(rows),
        labels=torch.tensor(rows) % NUM_LABELS,
    )


def run(state, *, steps, precision="float32"):
    def read_epoch(epoch, start):
        torch.rand(1)  # as a DataLoader does when it starts
        for number in range(start, STEPS_PER_EPOCH):
            yield read_batch(state.method, epoch=epoch, number=number)

    steps_left = train(
        state,
        read_epoch,
        config=LoopConfig(epochs=2, precision=precision),
        steps_per_epoch=STEPS_PER_EPOCH,
        read_chunks=lambda: iter(()),
    )
    return [report.losses for _, report in zip(range(steps), steps_left, strict=False)]


def step(method, optimizers, batch, *, progress=0.0):
    """One step of the loop, on a batch of one's own."""
    losses = method.loss(batch, progress).objectives
    for name, optimizer in optimizers.items():
        optimizer.zero_grad()
        losses[name].backward()
        optimizer.step()
    with torch.no_grad():
        method.after_step(progress)
    return losses["main"].item()


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
    frozen = [parameter for parameter in method.parameters() if not parameter.requires_grad]
    assert all(parameter.grad is None for parameter in frozen)


def test_a_fixed_batch_is_learnt(cls):
    state = start(cls)
    set_lr(state.optimizers["main"], factor=1.0)
    batch = read_batch(state.method, epoch=0, number=0)
    before = [p.detach().clone() for p in state.method.backbone.parameters()]
    losses = [step(state.method, state.optimizers, batch, progress=number / 20) for number in range(20)]
    moved = zip(state.method.backbone.parameters(), before, strict=True)
    assert all(p.isfinite().all() and not torch.equal(p, old) for p, old in moved)
    figures = state.method.health()
    assert all(map(math.isfinite, [*losses, *figures.values()]))
    if name_of(cls) in FIXED_AIM:
        assert sum(losses[-3:]) < 0.9 * sum(losses[:3]) or losses[-1] < losses[0] - 0.2


def test_trains_in_bf16_about_as_in_float32(cls):
    state = start(cls)
    losses = [loss["main"] for loss in run(state, steps=3, precision="bf16")]
    assert all(map(math.isfinite, losses))
    assert {p.dtype for p in state.method.parameters()} == {torch.float32}
    assert losses[0] == pytest.approx(run(start(cls), steps=1)[0]["main"], rel=0.1, abs=0.1)


def test_trains_on_large_images_by_the_published_stem(cls):
    sizes = {name: 224 for name in SIZES & set(cls.Config.model_fields)}
    torch.manual_seed(0)
    backbone = build_backbone(Architecture(name="alexnet_bn", width=0.125))
    config = cls.Config(**{**SMALL[name_of(cls)], **LARGE_TILES.get(name_of(cls), {}), **sizes})
    method = cls(config, backbone, num_rows=NUM_ROWS, num_labels=NUM_LABELS)
    loss = method.loss(read_batch(method, epoch=0, number=0, size=2), 0.0).objectives["main"]
    loss.backward()
    assert loss.isfinite() and next(backbone.parameters()).grad.abs().max() > 0


def test_any_batch_size_will_do(cls):
    """5 divides neither the rows nor a queue."""
    state = start(cls)
    for number in (0, 1, 0, 1):
        step(state.method, state.optimizers, read_batch(state.method, epoch=0, number=number, size=5), progress=0.9)
    assert all(value.isfinite().all() for value in state.method.state_dict().values())


def test_the_encoder_alone_opens_and_is_the_trained_one(cls, tmp_path):
    state = start(cls)
    run(state, steps=2)
    method = state.method
    config = TrainingConfig(
        architecture=method.backbone.architecture, method=name_of(cls), options=SMALL[name_of(cls)], epochs=1
    )
    keep_encoder(config, SimpleNamespace(data=Folder(tmp_path)), method=method)
    encoder = Encoder.__new__(Encoder)
    object.__setattr__(encoder, "folder", Folder(tmp_path))
    opened = load_backbone(encoder).eval()
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(opened(images)["conv5"], method.backbone.eval()(images)["conv5"])
    for name, head in method.heads().items():
        assert content(encoder.head_weights(name)) == content(dict(head.state_dict()))


def test_every_method_has_a_card(cls):
    card = cls.card
    assert all(vars(card).values()) and re.fullmatch(r"\d{4}\.\d{5}", card.arxiv)
    assert card.arxiv in cls.__doc__ and card.paper[-4:].isdigit()


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
    expected = [method.views(IMAGES[row], draw(row)) for row in range(BATCH)]
    torch.manual_seed(9)
    np.random.seed(9)
    state = torch.get_rng_state()
    for row in reversed(range(BATCH)):
        views = method.views(IMAGES[row], draw(row))
        assert all(torch.equal(views[name], expected[row][name]) for name in expected[row])
    assert torch.equal(torch.get_rng_state(), state)
    for key in ({"epoch": 1}, {"seed": 1}):
        again = [method.views(IMAGES[row], draw(row, **key)) for row in range(BATCH)]
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
    with pytest.raises(ValueError, match="Got 'no_such'.*jigsaw, jigsaw_pp, moco_v1, .*rotation"):
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
