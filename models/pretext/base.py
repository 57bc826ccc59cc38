"""What a training method is: what it looks at, what it learns, and the state it owns.

One file a method. `models/pretext/foo.py` holds the one class that `load_method("foo")` gives; ways to train
a student lie in `models/transfer/` and follow the same interface.
"""

import copy
import importlib
import inspect
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar, NotRequired, TypedDict

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from models.backbones import Backbone
from models.collapse import Watch
from models.views import IMAGENET_MEAN, IMAGENET_STD, Draw, normalise

MAIN = "main"


@dataclass(frozen=True)
class Batch:
    """Views of B rows, stacked.

    Attributes:
        views: what `views()` gave, by name, each (B, ...).
        positions: row numbers in the dataset, (B,) int64: the address of a row in a memory bank.
        labels: (B,) int64, or None without labels.
    """

    views: dict[str, Tensor]
    positions: Tensor
    labels: Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """Copy to a device; from pinned memory the copy overlaps with computing."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """Copy to page-locked memory (`torch.utils.data.DataLoader` calls this by its name)."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        return Batch(
            views={name: function(view) for name, view in self.views.items()},
            positions=function(self.positions),
            labels=None if self.labels is None else function(self.labels),
        )


@dataclass(frozen=True)
class Output:
    """What one batch gave.

    Attributes:
        objectives: scalar losses by name; each moves its own parameters (see `parameter_groups`) and one is
            called "main".
        metrics: scalars to watch.
    """

    objectives: dict[str, Tensor]
    metrics: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that one optimiser treats alike, relative to its settings.

    Attributes:
        parameters: of the method.
        rate: multiplies the learning rate.
        decay: multiplies the weight decay.
        momentum: replaces the optimiser's momentum; None keeps it. SGD only.
        scheduled: False keeps the learning rate at its base value throughout.
    """

    parameters: list[nn.Parameter]
    rate: float = 1.0
    decay: float = 1.0
    momentum: float | None = None
    scheduled: bool = True


class MethodConfig(BaseModel, frozen=True, extra="forbid"):
    """Settings every method has. `mean` and `std` are what a user of the encoder normalises with."""

    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD


@dataclass(frozen=True)
class Card:
    """What a user wants to know of a method before choosing it.

    Attributes:
        paper: authors and year.
        arxiv: its number there.
        kind: the family, such as "contrastive".
        views: what it looks at.
        keeps: what it holds in memory besides the network, such as a queue.
        verified: what its tests compare it with.
    """

    paper: str
    arxiv: str
    kind: str
    views: str
    keeps: str
    verified: str


class Context(TypedDict):
    """What a method is told besides its config and its backbone.

    Attributes:
        num_rows: rows of the dataset, the length of a memory bank.
        num_labels: number of classes in `Batch.labels`.
        teacher: a frozen network to learn from.
        vocabulary: visual words found before training, (K, D) float32.
    """

    num_rows: int
    num_labels: NotRequired[int | None]
    teacher: NotRequired[nn.Module | None]
    vocabulary: NotRequired[Tensor | None]


class PretextMethod(nn.Module, ABC):
    """Base of every method. All that must survive a kill is in its `state_dict`.

    Args:
        config: an instance of the class's own `Config`.
        backbone: the network to train.
        num_rows, num_labels, teacher, vocabulary: see `Context`; those in `needs` must be given.
    Raises:
        ValueError: something in `needs` is missing, or a teacher or vocabulary is given in vain.
    """

    Config: ClassVar[type[MethodConfig]] = MethodConfig
    card: ClassVar[Card]
    vocabulary: Tensor | None
    _mean: Tensor
    _std: Tensor
    version: ClassVar[int] = 1  # raised by hand when equal configs give other results
    needs: ClassVar[frozenset[str]] = frozenset()  # of "num_labels", "teacher", "vocabulary"
    # The loss is a mean over rows that do not look at each other but through BatchNorm, and nothing else is kept of
    # them: so a batch may be split over ranks (`models.split_batch`).
    rows_apart: ClassVar[bool] = False

    def __init__(
        self,
        config: MethodConfig,
        backbone: Backbone,
        *,
        num_rows: int,
        num_labels: int | None = None,
        teacher: nn.Module | None = None,
        vocabulary: Tensor | None = None,
    ) -> None:
        super().__init__()
        self._require("num_labels", given=num_labels is not None, allowed=True)
        self._require("teacher", given=teacher is not None)
        self._require("vocabulary", given=vocabulary is not None)
        self.config = config
        self.backbone = backbone
        self.num_rows = num_rows
        self.num_labels = num_labels
        self.watch = Watch(type(self).__name__)
        self.teacher = None if teacher is None else teacher.requires_grad_(False).eval()
        self.register_buffer("vocabulary", vocabulary)
        # On the device, so that a step copies nothing; not in the state, because they follow from the config.
        self.register_buffer("_mean", torch.tensor(config.mean), persistent=False)
        self.register_buffer("_std", torch.tensor(config.std), persistent=False)

    def _require(self, name: str, *, given: bool, allowed: bool = False) -> None:
        needed = name in self.needs
        if (needed and not given) or (given and not needed and not allowed):
            raise ValueError(
                f"{type(self).__name__} {'needs' if needed else 'has no use for'} {name}, which was "
                f"{'given' if given else 'not given'}. {'Give it' if needed else 'Leave it out'}, "
                "or choose another method."
            )

    @abstractmethod
    def views(self, image: Tensor, draw: Draw) -> dict[str, Tensor]:
        """Say what the method looks at; runs in a worker process, on one image, without the weights.

        Args:
            image: (3, H, W) uint8.
            draw: all the randomness there is.
        Returns:
            Views by name, uint8 pixels (normalised on the device, in `loss`) or an int64 target. The shapes
            depend on the config alone.
        """

    @abstractmethod
    def loss(self, batch: Batch, progress: float) -> Output:
        """Say what the method learns.

        Args:
            batch: on the device of the method.
            progress: share of the training that is done, in [0, 1).
        """

    def parameter_groups(self) -> dict[str, list[ParameterGroup]]:
        """Say which objective moves which parameters; by default "main" moves all that need a gradient."""
        return {MAIN: [ParameterGroup([p for p in self.parameters() if p.requires_grad])]}

    def after_step(self, progress: float) -> None:
        """Update what has no gradient (an averaged teacher, a centre, a queue). Default: nothing."""

    def before_epoch(self, read_chunks: Callable[[], Iterator[Batch]]) -> None:
        """Prepare an epoch from the whole dataset, as offline clustering does. Default: nothing.

        Args:
            read_chunks: starts a pass over all rows in row order; each Batch holds the deterministic view
                "image", (B, 3, S, S) float32 normalised, on the method's device.
        """

    def health(self) -> dict[str, float]:
        """Measure how far the method is from collapse, for the log. Default: what `loss` noted in `watch`."""
        return self.watch.figures()

    def heads(self) -> dict[str, nn.Module]:
        """Name the heads that are kept with the encoder. Default: none."""
        return {}

    def train(self, mode: bool = True) -> "PretextMethod":
        """Switch to training or evaluation; a teacher from outside always stays in evaluation."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def normalise(self, images: Tensor) -> Tensor:
        """Turn uint8 pixels (..., 3, H, W) into network input by the config's mean and deviation."""
        return normalise(images, mean=self._mean, std=self._std)

    def viewer(self) -> Callable[[Tensor, Draw], dict[str, Tensor]]:
        """Give `views` without the weights, so that sending it to a worker process costs nothing."""
        light = copy.copy(self)
        light.__dict__.update(_parameters={}, _buffers={}, _modules={})
        return light.views


def load_method(name: str) -> type[PretextMethod]:
    """Find the pretext method of a recipe: the one class in models/pretext/<name>.py.

    Raises:
        ValueError: there is no such file; the message lists what exists.
    """
    return _load(name, package="models.pretext")


def load_transfer(name: str) -> type[PretextMethod]:
    """Find the way a student learns: the one class in models/transfer/<name>.py.

    Raises:
        ValueError: there is no such file; the message lists what exists.
    """
    return _load(name, package="models.transfer")


def method_names(package: str) -> list[str]:
    """List the methods in a package ("models.pretext" or "models.transfer"), sorted."""
    modules = pkgutil.iter_modules(importlib.import_module(package).__path__)
    return sorted(module.name for module in modules if module.name != "base")


def _load(name: str, *, package: str) -> type[PretextMethod]:
    known = method_names(package)
    if name not in known:
        raise ValueError(
            f"A method is the name of a file in {package.replace('.', '/')}/. Got {name!r}. "
            f"Choose one of: {', '.join(known)}."
        )
    module = importlib.import_module(f"{package}.{name}")
    classes = [value for value in vars(module).values() if inspect.isclass(value)]
    # What the module imports (a method that it extends) is not its own.
    found = [cls for cls in classes if issubclass(cls, PretextMethod) and cls.__module__ == module.__name__]
    if len(found) != 1:
        raise ValueError(
            f"{module.__name__} must define exactly one subclass of PretextMethod. "
            f"Found {[cls.__name__ for cls in found]}. Move the others to files of their own."
        )
    return found[0]
