"""Whether a cluster's head still answers, and which of its nodes are about to end.

Ray itself ends a driver's process a minute after its head, without a word. Workers go on in that
minute, so that nothing else tells.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterable

import ray
from ray._private import state

from cluster.pools.pool import WorkersLost
from cluster.pools.ray_worker import Here

log = logging.getLogger(__name__)

CHECK_S = 2.0  # between looks at the head
GONE_S = 15.0  # without an answer; one that is restarted is back before
DRAIN_S = 5.0  # between looks at notices; those of clouds come half a minute before a node's end


class Head:
    """Looks at the head now and then, at most."""

    def __init__(self) -> None:
        host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
        self._address = host, int(port)
        self._answered = self._checked = self._asked = time.monotonic()
        self._ending: set[str] = set()  # nodes

    def answers(self, now: float) -> bool:
        """Whether the head answered when it was last looked at.

        Raises WorkersLost if it has not answered for too long.
        """
        if now - self._checked < CHECK_S:
            return self._answered >= self._checked
        self._checked = now
        try:
            socket.create_connection(self._address, timeout=CHECK_S).close()
            self._answered = time.monotonic()
        except OSError as error:
            if now - self._answered > GONE_S:
                host, port = self._address
                raise WorkersLost(
                    f"the head of the Ray cluster at {host}:{port} has not answered for "
                    f"{now - self._answered:.0f} s ({error})"
                ) from error
            return False
        if now - self._asked >= DRAIN_S:
            self._asked = now
            try:
                ending = set(state.state.get_draining_nodes())
            except Exception as error:  # a cluster that does not say so can be computed on
                log.debug("the head does not say which nodes are about to end: %s", error)
                return True
            for node in ending - self._ending:
                log.warning("node %s is about to end: it gets no new tickets", node[:6])
            self._ending = ending
        return True

    def ends(self, here: Here | None) -> bool:
        """Whether the node of a worker is about to end."""
        return here is not None and here.node in self._ending

    def leaving(self, actors: Iterable[object]) -> int:
        """How many of these workers are on nodes that are about to end."""
        return sum(self.ends(getattr(actor, "here", None)) for actor in actors)
