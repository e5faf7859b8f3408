"""A Ray in this process, for tests of what talks to it: actors are objects, and each of their calls a thread."""

from __future__ import annotations

import threading
from types import SimpleNamespace

_CALLS = threading.Condition()


class RayError(Exception):
    pass


class RayTaskError(RayError):
    pass


class RayActorError(RayError):
    pass


class Ref:
    def __init__(self):
        self.done, self.value, self.error = False, None, None

    def settle(self, value=None, error=None):
        with _CALLS:
            if not self.done:
                self.done, self.value, self.error = True, value, error
                _CALLS.notify_all()


class Handle:
    """An actor, as its owner sees it; `open` holds the calls that are not answered."""

    def __init__(self, actor):
        self.actor, self.dead, self.open = actor, False, []

    def __getattr__(self, name):
        return SimpleNamespace(remote=lambda *given: self._call(name, given))

    def _call(self, name, given):
        ref = Ref()
        if self.dead:
            ref.settle(error=RayActorError("The actor died.\nMore."))
            return ref
        self.open.append(ref)
        given = [value.value if isinstance(value, Ref) else value for value in given]

        def work():
            try:
                ref.settle(getattr(self.actor, name)(*given))
            except BaseException as error:
                ref.settle(error=RayTaskError(repr(error)))

        threading.Thread(target=work, daemon=True).start()
        return ref

    def die(self):
        self.dead = True
        self.actor.stop()  # its thread ends, too, and nobody hears of it
        for ref in self.open:
            ref.settle(error=RayActorError("The actor died.\nMore."))


class FakeRay:
    """The functions of the module `ray` that are used.

    Args:
        nodes: What `ray.nodes()` tells of each node's resources.
    """

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError, RayActorError=RayActorError)

    def __init__(self, nodes):
        self._nodes, self.actors, self.options, self.joined, self.left = nodes, [], [], [], 0

    def init(self, address, **options):
        self.joined.append(address)

    def shutdown(self):
        self.left += 1

    def nodes(self):
        return [{"Alive": True, "Resources": node} for node in self._nodes] + [{"Alive": False, "Resources": {}}]

    def put(self, value):
        ref = Ref()
        ref.settle(value)
        return ref

    def remote(self, of):
        def start():
            self.actors.append(Handle(of()))
            return self.actors[-1]

        def options(**given):
            self.options.append(given)
            return SimpleNamespace(remote=start)

        return SimpleNamespace(options=options)

    def wait(self, refs, timeout):
        with _CALLS:
            _CALLS.wait_for(lambda: any(ref.done for ref in refs), timeout)
            return [ref for ref in refs if ref.done], [ref for ref in refs if not ref.done]

    def get(self, ref, timeout=None):
        with _CALLS:
            assert _CALLS.wait_for(lambda: ref.done, timeout or 30)
        if ref.error is not None:
            raise ref.error
        return ref.value

    def kill(self, handle):
        handle.die()
