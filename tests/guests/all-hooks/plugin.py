"""A plugin with every hook, which calls everything that the host offers."""

from tidegate import (
    ALLOW,
    CACHED_ONLY,
    NEXT,
    PASS,
    RELEASE,
    REVALIDATE,
    Err,
    call,
    candidate,
    clock,
    config,
    deny,
    divert,
    facts,
    hold,
    image,
    log,
    metrics,
    name,
    pin,
    registry,
    state,
    tag,
    to,
    types,
    wait_ms,
)


def _settings():
    """What the configuration says, by its keys."""
    found = {}
    for file in config.files():
        for number, line in enumerate(file.text.splitlines(), 1):
            key, _, value = line.partition(" ")
            if key not in ("mirror", "pin") or not value:
                raise ValueError(f"{file.name}:{number}: `{line}` is neither `mirror REGISTRY` nor `pin DIGEST`")
            found[key] = value
    return found


def _asked(ask, *given):
    """What the host answers: an error by its name, a list of bytes by its length."""
    try:
        answer = ask(*given)
    except Err as error:
        told = error.value
        if isinstance(told, registry.Error_Unavailable):
            return told.value
        return told.name if isinstance(told, state.Error) else type(told).__name__
    return str(len(answer)) if isinstance(answer, bytes) else str(answer)


def _state():
    state.set("word", "first", None)
    once = state.set_once("word", "second", 60)
    kept = state.get("word")
    state.remove("word")
    long = _asked(state.set, "k" * 257, "v", None) == "KEY_TOO_LONG"
    return f"state={once}+{kept}+{state.get('word') or 'none'}+{'key-too-long' if long else 'set'}"


class Plugin:
    def check(self):
        if "mirror" not in _settings():
            raise ValueError("no file says `mirror REGISTRY`")

    def depends_on(self):
        return facts("client", "state")

    def admit(self, request):
        pulls = state.add(request.repository, 1, 3600)
        metrics.increment("asked", [types.Pair("repository", request.repository)], 2)
        metrics.set("pulls", [], pulls)
        if request.repository == "library/kept":
            return CACHED_ONLY
        if request.repository != "library/told":
            return ALLOW
        before = clock.monotonic_ns()
        client = call.client()
        call.warn("this was told")
        parts = [
            name(request),
            f"id={call.id()}",
            f"client={call.client_address()}",
            f"identity={client.subject if client else 'none'}",
            f"agent={call.user_agent()}",
            f"accept={'+'.join(call.accept())}",
            f"told={'+'.join(call.header('X-Tell'))}",
            f"method={call.attribute('method')}",
            f"nothing={call.attribute('nothing') or 'none'}",
            f"cache={call.cache().name.lower()}",
            f"left={'some' if call.remaining_ms() > 0 else 'none'}",
            f"clock={'on' if clock.monotonic_ns() >= before else 'back'}",
            f"now={clock.now_ms() // 1000}",
            _state(),
            f"pulls={pulls}",
        ]
        return deny(" ".join(parts), status=429, code="TOOMANYREQUESTS", retry_after_secs=7)

    def route(self, request, candidates):
        if request.repository == "library/nowhere":
            return deny(f"{candidates[0].registry} is nowhere")
        if request.repository == "library/failing":
            registry.manifest("../x")
        if request.repository != "library/mirrored":
            return PASS
        mirror = candidate(_settings()["mirror"], "team/mirrored")
        mirror.timeout_ms = 30_000
        mirror.options = [types.Pair("colour", "blue")]
        return to(mirror, *candidates)

    def on_failure(self, request, attempts, remaining):
        last = attempts[-1]
        if not isinstance(last.failure, types.Failure_Status):
            return PASS
        if last.failure.value == 503:
            return wait_ms(1) if len(attempts) == 1 else divert(candidate(_settings()["mirror"]))
        if remaining:
            return NEXT
        if request.repository != "library/mirrored":
            return PASS
        limits = "+".join(f"{limit.key}={limit.value}" for limit in last.rate_limit)
        tried = "+".join(f"{attempt.candidate.registry}/{attempt.candidate.repository or '-'}" for attempt in attempts)
        message = f"{last.failure.value} of {tried}, again after {last.retry_after_secs}, {limits}, {last.bytes} bytes"
        return deny(message, status=404, code="MANIFEST_UNKNOWN")

    def inspect(self, request):
        seconds = image.annotation("org.example.hold")
        if seconds is None:
            return RELEASE
        target = image.target()
        layers = image.layers()
        subject = image.subject()
        referrers = registry.referrers(target.digest, "application/vnd.example.sbom")
        parts = [
            f"target={target.digest}+{target.media_type}+{target.size}",
            f"raw={len(image.raw())}",
            f"layers={'+'.join(layer.digest for layer in layers)}",
            f"annotations={'+'.join(f'{pair.key}={pair.value}' for pair in image.annotations())}",
            f"artifact={image.artifact_type() or 'none'}",
            f"subject={subject.digest if subject else 'none'}",
            f"label={image.label('name')}",
            f"unlabelled={image.label('nothing') or 'none'}",
            f"config={len(image.config())}",
            f"parents={'+'.join(image.parents())}",
            f"other={_asked(registry.manifest, 'other')}",
            f"gone={'not-found' if _asked(registry.manifest, 'gone') == 'Error_NotFound' else 'found'}",
            f"bad={_asked(registry.manifest, '../x')}",
            f"referrers={'+'.join(f'{found.digest}+{found.artifact_type}+{found.size}' for found in referrers)}",
            f"blob={_asked(registry.blob, layers[2].digest)}",
        ]
        return hold(" ".join(parts), int(seconds))

    def judge(self, request, cached):
        copy = f"{cached.digest} for {cached.age_secs} s" if cached else "nothing"
        log.write(log.Level.INFO, f"{name(request)}: the cache holds {copy}")
        if tag(request) == "pinned":
            return pin(_settings()["pin"])
        return REVALIDATE if tag(request) == "moving" else PASS
