"""The only door to Ray: ranks on the machines of a cluster, as actors. See `tasks.ranks`."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.util import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from tasks.interruption import ask_to_stop
from tasks.one_rank import Place, open_work, run_rank, say
from tasks.ranks import STOP_SECONDS, WORDS, Order, Ranks, Word
from tasks.runtime import Runtime

log = logging.getLogger(__name__)

# Between two warnings that the cluster has no room.
PATIENCE_SECONDS = 60.0


@contextmanager
def ray_ranks(order: Order, runtime: Runtime) -> Iterator[Ranks]:
    """Ranks on the machines of the Ray cluster that RAY_ADDRESS names, or that this machine belongs to.

    Raises:
        ConnectionError: there is no cluster.
    """
    terminated = signal.getsignal(signal.SIGTERM)
    with ray.init("auto", log_to_driver=False, logging_level=logging.WARNING):
        if threading.current_thread() is threading.main_thread():
            # Ray has put its own in this place.
            signal.signal(signal.SIGTERM, terminated)
        each = {"CPU": max(1, order.runtime["workers"]), "GPU": int(runtime.torch_device.startswith("cuda"))}
        # All of them or none: half of the ranks would wait for the others and hold what those need.
        group = placement_group([each] * runtime.ranks)
        try:
            while not group.wait(PATIENCE_SECONDS):
                log.warning("the Ray cluster has no room yet for %d ranks of %s", runtime.ranks, each)
            ranks = _Ray(order, group, number=runtime.ranks, each=each)
            try:
                yield ranks
            finally:
                ranks.stop()
        finally:
            remove_placement_group(group)


class _Ray:
    """One actor a rank."""

    trace = "Ray's logs"

    def __init__(self, order: Order, group: Any, *, number: int, each: dict[str, int]) -> None:
        kind: Any = ray.remote(RayRank).options(
            num_cpus=each["CPU"],
            num_gpus=each["GPU"],
            max_concurrency=2,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group),
        )
        self._actors: list[Any] = [kind.remote(order.model_dump_json(), rank, number) for rank in range(number)]
        address = ray.get(self._actors[0].address.remote())
        self._running = [actor.run.remote(address) for actor in self._actors]

    def ended(self, *, seconds: float) -> bool:
        done, self._running = ray.wait(self._running, num_returns=len(self._running), timeout=seconds)
        return not self._running or not all(map(self._went_well, done))

    def _went_well(self, call: Any) -> bool:
        try:
            return bool(ray.get(call))
        except ray.exceptions.RayError as error:
            log.debug("a rank was lost: %s", error)
            return False

    def stop(self) -> None:
        try:
            if self._running:
                for actor in self._actors:
                    actor.stop.remote()
                ray.wait(self._running, num_returns=len(self._running), timeout=STOP_SECONDS)
        finally:
            for actor in self._actors:
                ray.kill(actor)


class RayRank:
    """A rank as an actor of Ray: one thread works, another listens."""

    def __init__(self, order: str, rank: int, number: int) -> None:
        self._order = Order.model_validate_json(order)
        self._rank, self._number = rank, number

    def address(self) -> str:
        """Where the ranks meet, if this is rank 0."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return f"tcp://{ray.util.get_node_ip_address()}:{probe.getsockname()[1]}"

    def run(self, address: str) -> bool:
        """Do the work; see run_rank."""
        # Ray shows each actor only its own GPU.
        return run_rank(self._order, Place(self._rank, self._number, local=0, meet=address))

    def stop(self) -> None:
        """Stop after the step of training that is under way; at once where nothing waits for a signal."""
        if not ask_to_stop():
            _, folder = open_work(self._order)
            # Its work may have ended just now.
            if not (folder / "state" / WORDS).exists(f"{self._rank}.json"):
                say(Word(end="stopped"), folder, rank=self._rank)
            os._exit(1)
