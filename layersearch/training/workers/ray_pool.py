"""The pool on a Ray cluster of one or more machines. Users read docs/how-to/ray-cluster.md.

A worker group has one placement group with one bundle per rank (``training.threads`` CPUs and ``training.gpus`` GPUs),
and one actor per bundle. An actor holds a worker process, as on one machine. Training inside the actor would block its
messages, or run off the main thread, where the C library's allocator keeps less.
"""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from layersearch.config.recipe import Recipe
from layersearch.config.training import TrainingConfig
from layersearch.data import open_of
from layersearch.errors import LayersearchError, one_line, require
from layersearch.training.workers.pool import Pool
from layersearch.training.workers.process import WorkerProcess
from layersearch.training.workers.ray_cleanup import watch
from layersearch.training.workers.worker_group import WorkerGroup
from layersearch.version import __version__

_CONNECT_TIMEOUT, _STATUS_TIMEOUT = 5.0, 20.0  # Seconds; Ray itself would try for two minutes, then exit
_STORE_BYTES = 100_000_000  # Shared memory of a cluster that we start: trials use none, Ray would take a third
_ANSWER_TIMEOUT = 30.0  # Seconds that an actor's answer may take beyond the wait for its worker
_SILENT = {"event": "silent"}
_ELSEWHERE_TIMEOUT = 30.0  # Seconds for Ray to move a placement away from a machine that has died
_PLACEMENT_TIMEOUT = 2.0  # Seconds for Ray to create a placement that has room: milliseconds unless the machine is busy


class RayPool(Pool):
    """Workers on a Ray cluster, in groups of ``recipe.training.ranks``.

    The caller's connection to Ray is used and left open. Without one, the pool connects, and disconnects when it
    closes. ``address`` is ``HOST:PORT`` of the cluster's head node, or ``auto`` for a cluster on this machine. None:
    ``$RAY_ADDRESS``, else a new cluster on this machine. See `PoolFactory` for the other arguments.

    Groups without room on the cluster wait. On machines without the folder ``logs``, Ray's logs have the output.

    Raises:
        LayersearchError: if Ray is missing, the address does not answer, or the cluster is too small for one trial.
    """

    def __init__(
        self, recipe: Recipe, workers: int, logs: Path, cache: Path | None = None, *, address: str | None = None
    ) -> None:
        self._ours, self._watcher = _connect(address)
        try:
            _check_room(recipe.training)
            source = open_of(recipe, cache)
            groups = [_RayWorkerGroup(recipe, index, logs, cache, source.fingerprint) for index in range(workers)]
        except BaseException:
            self._disconnect()
            raise
        self._ray_groups, self._opened = groups, time.monotonic()
        super().__init__(recipe, groups)

    def close(self) -> None:
        """End every worker, remove the placements, and disconnect if the pool connected."""
        super().close()
        # Ray 2.60 loses the room of a placement that is removed while it is created, until the cluster ends. So wait
        # for each, and remove those that wait for room before those that would make room for them.
        placed = [
            group.wait_until_placed(max(0.0, self._opened + _PLACEMENT_TIMEOUT - time.monotonic()))
            for group in self._ray_groups
        ]
        for _, group in sorted(zip(placed, self._ray_groups, strict=True), key=lambda pair: pair[0]):
            group.remove_placement()
        self._ray_groups.clear()
        self._disconnect()

    def _disconnect(self) -> None:
        if self._ours:
            import ray

            ray.shutdown()
            self._ours = False
        if self._watcher is not None:
            self._watcher.communicate()  # ends its standard input; it waits for Ray's processes, and ends those left
            self._watcher = None


def _connect(address: str | None) -> tuple[bool, "subprocess.Popen[bytes] | None"]:
    """Connect to a cluster; return whether this made a new connection, and the watcher of a cluster that it started."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import ray
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise LayersearchError('--pool ray needs Ray, which is not installed: pip install "layersearch[ray]"') from None
    if ray.is_initialized():
        joined = ray.get_runtime_context().gcs_address
        here = f"--ray-address {address}: this process is connected to {joined}; disconnect it first"
        require(address in (None, joined), here)
        return False, None
    cluster, origin = address, "--ray-address"
    if cluster is None and os.environ.get("RAY_ADDRESS"):
        cluster, origin = os.environ["RAY_ADDRESS"], "RAY_ADDRESS"
    if cluster is not None:
        _check_answers(cluster, f"{origin} {cluster}")
    # Otherwise Ray hides the GPUs from ranks that need none, and warns that a later Ray will not.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    started: dict[str, Any] = {}
    if not cluster:
        started = {"include_dashboard": False, "object_store_memory": _STORE_BYTES}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with _own_sigterm(), contextlib.nullcontext() if cluster else _loopback():
                ray.init(address=cluster or "local", log_to_driver=False, logging_level=logging.ERROR, **started)
    except Exception as error:  # also a bare Exception, where a node is not up in time
        what = f"{origin} {cluster}: Ray refuses it" if cluster else "--pool ray: no cluster could be started here"
        raise LayersearchError(f"{what} ({one_line(error)}); correct it, or use --pool local") from None
    return True, None if cluster else watch(os.getpid())


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep this process's handler of SIGTERM, which Ray replaces by one that ends with code 15."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _loopback() -> Iterator[None]:
    """Let a cluster that is started here listen on 127.0.0.1 only, as Ray does on macOS and Windows.

    Elsewhere Ray takes the address of a network interface and listens on all of them.
    """
    from ray._private import ray_constants

    name, before = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, ray_constants.ENABLE_RAY_CLUSTER
    held = os.environ.get(name)
    os.environ[name], ray_constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        os.environ.pop(name)
        if held is not None:
            os.environ[name] = held


def _check_answers(address: str, where: str) -> None:
    """Refuse an address without a Ray cluster of this version."""
    host, colon, port = address.rpartition(":")
    if address != "auto":
        known = colon and host and "/" not in host and port.isdecimal() and len(port) < 6 and int(port) < 2**16
        require(known, f"{where}: give HOST:PORT of the cluster's head node, such as 10.0.0.1:6379, or auto")
        try:
            socket.create_connection((host, int(port)), timeout=_CONNECT_TIMEOUT).close()
        except OSError as error:
            silent = f"{where}: no answer ({error.strerror or error}); start the cluster, or correct the address"
            raise LayersearchError(silent) from None
    command = [sys.executable, "-P", "-m", "ray.scripts.scripts", "status"]
    command += [] if address == "auto" else ["--address", address]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=_STATUS_TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        silent = f"{where}: no Ray cluster answers there; give the port of its head node (6379)"
        raise LayersearchError(silent) from None
    if "AuthenticationError" in found.stderr:  # on this machine, Ray finds the token itself
        asks = f"{where}: the cluster asks for its token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
        require(address == "auto", asks)
    elif found.returncode:
        reason = [*filter(str.strip, ["no reason given", *found.stderr.splitlines()])][-1].strip()
        raise LayersearchError(f"{where}: no cluster to join ({reason[:200]}); start one, or correct the address")


def _needs(training: TrainingConfig) -> dict[str, int]:
    """Return the resources of one rank."""
    needs = {"CPU": training.threads, "GPU": training.gpus}
    return {name: count for name, count in needs.items() if count}


def _check_room(training: TrainingConfig) -> None:
    """Refuse a trial that the cluster could never place."""
    import ray

    needs = _needs(training)
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    room = sum(min(int(machine.get(name, 0) // count) for name, count in needs.items()) for machine in machines)
    if room >= training.ranks:
        return
    each = " and ".join(f"{count} {name}" for name, count in needs.items())
    total = " and ".join(f"{sum(machine.get(name, 0) for machine in machines):g} {name}" for name in needs)
    raise LayersearchError(
        f"--pool ray: a trial is training.ranks {training.ranks} of {each}, and the cluster ({total} on "
        f"{len(machines)} machines) has room for {room}: lower training.ranks, training.threads or training.gpus, or "
        "add machines"
    )


class _RayWorkerGroup(WorkerGroup):
    """Actors in one placement group, on one machine if it has room, else on several."""

    def __init__(self, recipe: Recipe, index: int, logs: Path, cache: Path | None, fingerprint: str) -> None:
        super().__init__(recipe, index, logs.resolve(), cache.resolve() if cache else None)
        from ray.util.placement_group import placement_group

        self._fingerprint = fingerprint
        needs = _needs(recipe.training)
        self._placement = placement_group([dict(needs) for _ in range(recipe.training.ranks)], strategy="PACK")

    def wait_until_placed(self, timeout: float) -> bool:
        return bool(self._placement.wait(timeout_seconds=timeout))

    def remove_placement(self) -> None:
        """Free its resources."""
        from ray.util.placement_group import remove_placement_group

        remove_placement_group(self._placement)

    def launch(self) -> None:
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        self.logs.mkdir(parents=True, exist_ok=True)
        training = self.recipe.training
        kind = ray.remote(num_cpus=training.threads, num_gpus=training.gpus)(_Actor)
        bundles = [
            PlacementGroupSchedulingStrategy(self._placement, placement_group_bundle_index=rank)
            for rank in range(training.ranks)
        ]
        ends = time.monotonic() + _ELSEWHERE_TIMEOUT
        while True:
            ranks = [_RayRank(kind.options(scheduling_strategy=bundle).remote()) for bundle in bundles]
            self.ranks = [*ranks]
            try:
                homes = [rank.home() for rank in ranks]
                break
            except EOFError:  # its machine has died, and Ray has not moved the placement yet
                if time.monotonic() > ends:
                    raise
                for rank in ranks:
                    rank.kill()
                time.sleep(1.0)
        one_machine = len({home["node"] for home in homes}) == 1
        # Ray shows an actor only its own GPUs.
        device = "cuda:0" if training.gpus else "cpu"
        met: dict[str, Any] = {"fingerprint": self._fingerprint}
        for number, rank in enumerate(ranks):
            host = None if number else "127.0.0.1" if one_machine else homes[0]["address"]
            met = rank.start(self.settings(number, device) | met, self.log(number), host, Path.cwd())
            met = {key: met[key] for key in ("fingerprint", "rendezvous")}

    def log_place(self) -> str:
        return f"{self.logs}, or Ray's logs where that folder is not on the worker's machine"


class _Actor(WorkerProcess):
    """A Ray actor that holds a worker process."""

    def home(self) -> dict[str, Any]:
        import ray

        node, address = ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        return {"pid": os.getpid(), "node": node, "address": address, "version": __version__}

    def receive(self, timeout: float | None = None) -> dict[str, Any] | None:
        try:
            return super().receive(timeout)
        except TimeoutError:
            return _SILENT  # an exception of a Ray actor comes as another kind


class _RayRank(WorkerProcess):
    """A worker process behind an actor, seen from the search."""

    def __init__(self, actor: Any) -> None:
        super().__init__()
        self._actor = actor

    def home(self) -> dict[str, Any]:
        """Return the actor's process ID, machine and version; refuse another version of layersearch there."""
        found = dict(self._ask("home"))
        self.pid, other = found["pid"], f"--pool ray: {found['address']} has layersearch {found['version']}"
        require(found["version"] == __version__, f"{other}, here is {__version__}; install the same there")
        return found

    def start(
        self, settings: Mapping[str, Any], log: Path, host: str | None = None, folder: Path | None = None
    ) -> dict[str, Any]:
        return dict(self._ask("start", dict(settings), log, host, folder))

    def send(self, message: Mapping[str, Any]) -> bool:
        return bool(self._ask_or(False, "send", dict(message)))

    def receive(self, timeout: float | None = None) -> dict[str, Any] | None:
        wait = None if timeout is None else timeout + _ANSWER_TIMEOUT
        message: dict[str, Any] | None = self._ask_or(None, "receive", timeout, wait=wait)
        if message == _SILENT:
            raise TimeoutError
        return message

    def exit_status(self, timeout: float) -> str:
        return str(self._ask_or("its Ray actor died", "exit_status", timeout))

    def kill(self) -> None:
        """Kill the actor at once; its worker ends with the pipe between them."""
        import ray

        ray.kill(self._actor)

    def _ask_or(self, if_dead: Any, method: str, *arguments: Any, wait: float | None = None) -> Any:
        try:
            return self._ask(method, *arguments, wait=wait)
        except EOFError:
            return if_dead

    def _ask(self, method: str, *arguments: Any, wait: float | None = None) -> Any:
        """Call a method of the actor; raise EOFError if it died, TimeoutError if it is silent for ``wait`` seconds."""
        import ray

        try:
            return ray.get(getattr(self._actor, method).remote(*arguments), timeout=wait)
        except ray.exceptions.GetTimeoutError:
            raise TimeoutError from None
        except ray.exceptions.RayActorError as error:
            if not error.actor_init_failed:
                raise EOFError from None
            reason = (
                f"--pool ray: no worker can be started on the cluster ({str(error).strip().splitlines()[-1][:200]})"
            )
            raise LayersearchError(f"{reason}: install layersearch {__version__} on every machine of it") from None
