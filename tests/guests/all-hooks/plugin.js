// A plugin with every hook, which calls everything that the host offers.

import {
  allow, cachedOnly, call, candidate, clock, config, deny, divert, facts, hold, image, log, metrics, name, next, pass, pin,
  registry, release, revalidate, state, tag, to, waitMs,
} from "./tidegate/tidegate.js";

/** What the configuration says, by its keys. */
function settings() {
  const found = {};
  for (const file of config.files()) {
    for (const [at, line] of file.text.split("\n").entries()) {
      if (line === "") continue;
      const [, key, value] = /^(mirror|pin) (.+)$/.exec(line) ?? [];
      if (!key) throw new Error(`${file.name}:${at + 1}: \`${line}\` is neither \`mirror REGISTRY\` nor \`pin DIGEST\``);
      found[key] = value;
    }
  }
  return found;
}

/** What the host answers: an error by its name or its text, a list of bytes by its length. */
function asked(ask) {
  try {
    const answer = ask();
    return answer instanceof Uint8Array ? String(answer.length) : String(answer);
  } catch (error) {
    return error.payload.val ?? error.payload.tag ?? error.payload;
  }
}

function tellState() {
  state.set("word", "first");
  const once = state.setOnce("word", "second", 60);
  const kept = state.get("word");
  state.remove("word");
  return `state=${once}+${kept}+${state.get("word") ?? "none"}+${asked(() => state.set("k".repeat(257), "v"))}`;
}

export default {
  check() {
    if (!settings().mirror) throw new Error("no file says `mirror REGISTRY`");
  },

  dependsOn() {
    return facts("client", "state");
  },

  admit(request) {
    const { repository } = request;
    const pulls = state.add(repository, 1, 3600);
    metrics.increment("asked", [{ key: "repository", value: repository }], 2);
    metrics.set("pulls", [], pulls);
    if (repository === "library/kept") return cachedOnly;
    if (repository !== "library/told") return allow;
    const before = clock.monotonicNs();
    call.warn("this was told");
    const parts = [
      name(request),
      `id=${call.id()}`,
      `client=${call.clientAddress()}`,
      `identity=${call.client()?.subject ?? "none"}`,
      `agent=${call.userAgent()}`,
      `accept=${call.accept().join("+")}`,
      `told=${call.header("X-Tell").join("+")}`,
      `method=${call.attribute("method")}`,
      `nothing=${call.attribute("nothing") ?? "none"}`,
      `cache=${call.cache()}`,
      `left=${call.remainingMs() > 0 ? "some" : "none"}`,
      `clock=${clock.monotonicNs() >= before ? "on" : "back"}`,
      `now=${Math.floor(clock.nowMs() / 1000)}`,
      tellState(),
      `pulls=${pulls}`,
    ];
    return deny(parts.join(" "), { status: 429, code: "TOOMANYREQUESTS", retryAfterSecs: 7 });
  },

  route({ repository }, candidates) {
    if (repository === "library/nowhere") return deny(`${candidates[0].registry} is nowhere`);
    if (repository === "library/failing") registry.manifest("../x");
    if (repository !== "library/mirrored") return pass;
    const mirror = candidate(settings().mirror, "team/mirrored");
    return to({ ...mirror, timeoutMs: 30_000, options: [{ key: "colour", value: "blue" }] }, ...candidates);
  },

  onFailure({ repository }, attempts, remaining) {
    const last = attempts.at(-1);
    if (last.failure.tag !== "status") return pass;
    if (last.failure.val === 503) return attempts.length === 1 ? waitMs(1) : divert(candidate(settings().mirror));
    if (remaining.length > 0) return next;
    if (repository !== "library/mirrored") return pass;
    const limits = last.rateLimit.map(({ key, value }) => `${key}=${value}`).join("+");
    const tried = attempts.map(({ candidate }) => `${candidate.registry}/${candidate.repository ?? "-"}`).join("+");
    const again = `again after ${last.retryAfterSecs}`;
    const message = `${last.failure.val} of ${tried}, ${again}, ${limits}, ${last.bytes} bytes`;
    return deny(message, { status: 404, code: "MANIFEST_UNKNOWN" });
  },

  inspect() {
    const seconds = image.annotation("org.example.hold");
    if (seconds === null) return release;
    const target = image.target();
    const layers = image.layers();
    const referrers = registry.referrers(target.digest, "application/vnd.example.sbom");
    const parts = [
      `target=${target.digest}+${target.mediaType}+${target.size}`,
      `raw=${image.raw().length}`,
      `layers=${layers.map(({ digest }) => digest).join("+")}`,
      `annotations=${image.annotations().map(({ key, value }) => `${key}=${value}`).join("+")}`,
      `artifact=${image.artifactType() ?? "none"}`,
      `subject=${image.subject()?.digest ?? "none"}`,
      `label=${image.label("name")}`,
      `unlabelled=${image.label("nothing") ?? "none"}`,
      `config=${image.config().length}`,
      `parents=${image.parents().join("+")}`,
      `other=${asked(() => registry.manifest("other"))}`,
      `gone=${asked(() => registry.manifest("gone"))}`,
      `bad=${asked(() => registry.manifest("../x"))}`,
      `referrers=${referrers.map((found) => `${found.digest}+${found.artifactType}+${found.size}`).join("+")}`,
      `blob=${asked(() => registry.blob(layers[2].digest))}`,
    ];
    return hold(parts.join(" "), Number(seconds));
  },

  judge(request, cached) {
    const copy = cached ? `${cached.digest} for ${cached.ageSecs} s` : "nothing";
    log.write("info", `${name(request)}: the cache holds ${copy}`);
    if (tag(request) === "pinned") return pin(settings().pin);
    return tag(request) === "moving" ? revalidate : pass;
  },
};
