"""What a Tidegate plugin in Python is built on.

A plugin is the class `Plugin` in `plugin.py`. Its methods are the hooks that it wants; other methods begin with `_`:

    check(self)                                    reads the configuration; an exception refuses it
    depends_on(self)                               facts(...): see AUTHORING.md, "Answers that are remembered"
    admit(self, request)                           ALLOW, CACHED_ONLY or deny(...)
    route(self, request, candidates)               PASS, to(...) or deny(...)
    on_failure(self, request, attempts, remaining) PASS, NEXT, divert(...), SERVE_STALE, wait_ms(...), STOP or deny(...)
    inspect(self, request)                         RELEASE, hold(...) or deny(...)
    judge(self, request, cached)                   PASS, SERVE, REVALIDATE or pin(...)

An exception fails the call, and its text is the reason in the proxy's log. What the host offers are the modules
`call`, `clock`, `config`, `image`, `log`, `metrics`, `registry` and `state`; `wit/` describes them.
"""

import functools
import importlib
import traceback
from dataclasses import dataclass
from typing import Any, Optional

from componentize_py_types import Err
from wit_world.imports import call, clock, config, image, log, metrics, registry, state, types
from wit_world.imports.types import Candidate, Denial, Request


@dataclass(frozen=True)
class Answer:
    """What a hook answers: a word of `wit/`, and what comes with it."""

    word: str
    value: tuple = ()


ALLOW = Answer("Allow")
CACHED_ONLY = Answer("CachedOnly")
PASS = Answer("Pass")
NEXT = Answer("Next")
SERVE_STALE = Answer("ServeStale")
STOP = Answer("Stop")
RELEASE = Answer("Release")
SERVE = Answer("Serve")
REVALIDATE = Answer("Revalidate")


def deny(message: str, status: int = 403, code: str = "DENIED", retry_after_secs: Optional[int] = None) -> Answer:
    """The client is told the message, which names what is denied, and why."""
    return Answer("Deny", (Denial(status, code, message, retry_after_secs),))


def to(*candidates: Candidate) -> Answer:
    """These, in this order; none: only the cache may serve."""
    return Answer("To", (list(candidates),))


def divert(candidate: Candidate) -> Answer:
    """This candidate now, then those that remain."""
    return Answer("Divert", (candidate,))


def wait_ms(milliseconds: int) -> Answer:
    """Wait, then try the same candidate again."""
    return Answer("WaitMs", (milliseconds,))


def hold(message: str, for_secs: int) -> Answer:
    """Not now: the client may ask again after so many seconds."""
    from wit_world.exports import inspection

    return Answer("Hold", (inspection.Hold(for_secs, message),))


def pin(digest: str) -> Answer:
    """The tag stands for this digest."""
    return Answer("Pin", (digest,))


def facts(*names: str) -> Any:
    """What answers depend on: "client", "headers", "time", "state", "lookups". None: on the request alone."""
    from wit_world.exports import hints

    return functools.reduce(lambda all_of, one: all_of | hints.Facts[one.upper()], names, hints.Facts(0))


def candidate(registry: str, repository: Optional[str] = None) -> Candidate:
    """A registry by name, with the repository that the client asked for or with another one."""
    return Candidate(registry, repository, None, None, [])


def tag(request: Request) -> Optional[str]:
    """The tag; None when the content is named by its digest, or not at all."""
    return request.reference.value if isinstance(request.reference, types.Reference_Tag) else None


def digest(request: Request) -> Optional[str]:
    """The digest; None when the content is named by a tag, or not at all."""
    return request.reference.value if isinstance(request.reference, types.Reference_Digest) else None


def name(request: Request) -> str:
    """As people write it: `docker.io/library/alpine:3`."""
    image_name = f"{request.registry}/{request.repository}"
    if (by_tag := tag(request)) is not None:
        return f"{image_name}:{by_tag}"
    if (by_digest := digest(request)) is not None:
        return f"{image_name}@{by_digest}"
    return image_name


# What the answer of a hook is called in `wit/`.
_VARIANTS = {
    "admission": "Verdict",
    "routing": "Routes",
    "fallback": "Step",
    "inspection": "Finding",
    "freshness": "Rule",
}


def _call(hook: str, method, *given: Any) -> Any:
    """Calls a method of the plugin, and turns its answer into that of the hook."""
    try:
        answer = method(*given)
        if hook == "lifecycle":
            return None
        if hook == "hints":
            return answer
        words = importlib.import_module(f"wit_world.exports.{hook}")
        made = getattr(words, f"{_VARIANTS[hook]}_{answer.word}", None) if isinstance(answer, Answer) else None
        if made is None:
            raise TypeError(f"{method.__name__} answers {answer!r}, which is no answer of the hook {hook}")
        return made(*answer.value)
    except Exception as error:
        if hook == "lifecycle":
            raise Err(_reason(error)) from error
        log.write(log.Level.ERROR, _reason(error))
        raise


def _reason(error: Exception) -> str:
    """The text of an exception, and where in the plugin it was raised."""
    places = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith("plugin.py")]
    place = f" (plugin.py:{places[-1].lineno})" if places else ""
    return f"{type(error).__name__}: {error}{place}"
