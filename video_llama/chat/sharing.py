"""What many conversations share of one model: its lock, and the memory of keys and values."""

from __future__ import annotations

import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager

from video_llama.models.generation.cache import PrefixCache
from video_llama.models.generation.generate import ModelLock


class FairLock(ModelLock):
    """A lock that is given to those who wait in the order in which they came."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._waiting: deque[threading.Event] = deque()
        self._held = False

    @property
    def num_waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the lock."""
        self.acquire()
        try:
            yield
        finally:
            self.release()

    def acquire(self) -> None:
        """Wait for one's turn."""
        with self._guard:
            if not self._held:
                self._held = True
                return
            # One event per thread: a condition would wake them in any order.
            ticket = threading.Event()
            self._waiting.append(ticket)
        received = False
        try:
            received = ticket.wait()
        finally:
            if not received:  # interrupted: nobody else must wait for one who has left
                self._leave(ticket)

    def _leave(self, ticket: threading.Event) -> None:
        with self._guard:
            if ticket in self._waiting:
                self._waiting.remove(ticket)
                return
        # The lock was handed over in the meantime, so that it is this thread's to pass on.
        self.release()

    def release(self) -> None:
        """Hand the lock to the first who waits."""
        with self._guard:
            # It stays held on the way: a newcomer must not slip in before who has waited.
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._held = False

    def yield_turn(self) -> None:
        """Let everybody who waits go first; the lock is held before and after."""
        with self._guard:
            if not self._waiting:
                return
        self.release()
        self.acquire()


class TimedLock(ModelLock):
    """A shared lock as one answer uses it.

    Attributes:
        waited: seconds spent waiting for others.
    """

    def __init__(self, lock: FairLock) -> None:
        self._lock = lock
        self.waited = 0.0

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the model for one step."""
        start = time.perf_counter()
        with self._lock.turn():
            self.waited += time.perf_counter() - start
            yield

    def yield_turn(self) -> None:
        """Let others run first."""
        start = time.perf_counter()
        self._lock.yield_turn()
        self.waited += time.perf_counter() - start


class CachePool:
    """Keeps the keys and values of idle conversations within a bound, all together.

    Args:
        max_bytes: of all of them; beyond it the least recently used go.
    """

    def __init__(self, max_bytes: float) -> None:
        self._max_bytes = max_bytes
        self._guard = threading.Lock()
        # Weak: a conversation that nobody holds any more frees its cache by itself.
        self._idle: OrderedDict[int, weakref.ref[PrefixCache]] = OrderedDict()

    @contextmanager
    def lease(self, cache: PrefixCache) -> Iterator[None]:
        """Keep others from clearing the cache within the block."""
        with self._guard:
            self._idle.pop(id(cache), None)
        try:
            yield
        finally:
            with self._guard:
                self._idle[id(cache)] = weakref.ref(cache)
                self._evict()

    def _evict(self) -> None:
        # Those of closed sessions are gone already.
        alive = {key: cache for key, ref in self._idle.items() if (cache := ref()) is not None}
        self._idle = OrderedDict((key, self._idle[key]) for key in alive)
        total = sum(cache.num_bytes for cache in alive.values())
        for key, cache in alive.items():
            if total <= self._max_bytes:
                return
            # Only speed is lost: the next turn of that conversation computes its prompt again.
            total -= cache.num_bytes
            cache.clear()
            del self._idle[key]
