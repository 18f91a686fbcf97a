"""Processes between two maps: to start one and to import in it what a worker needs takes longer than a short stage.

Imported by `on_ray.py` and `crew.py`, after what Ray reads from the environment is set.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ray

from cluster.executor import Resources
from cluster.room import actor_options
from cluster.worker import Place


@dataclass
class Reserve:
    """The actors that one executor's last map left idle, for its next one. Ray ends them when nobody holds them."""

    _kind: tuple[Any, ...] = ()
    _actors: list[Any] = field(default_factory=list)

    def take(self, resources: Resources, env_vars: Mapping[str, str]) -> Any:
        """An actor with these resources and environment: one that is idle, else a new one."""
        kind = (resources, *sorted(env_vars.items()), _session())
        if kind != self._kind:
            self._kind = kind
            self._actors.clear()
        return self._actors.pop() if self._actors else _new(resources, env_vars)

    def keep(self, actor: Any) -> None:
        """Hold an actor that was taken last under the same resources and environment, and has nothing to do."""
        self._actors.append(actor)


def _new(resources: Resources, env_vars: Mapping[str, str]) -> Any:
    return ray.remote(Place).options(**actor_options(resources, env_vars)).remote()


def _session() -> str:
    """This process's connection: actors of one before it are gone."""
    return ray.get_runtime_context().get_worker_id()
