// What a Tidegate plugin in JavaScript is built on.
//
// A plugin is the object that `plugin.js` exports as its default. Its methods are the hooks that it wants:
//
//   check()                                   reads the configuration; an exception refuses it
//   dependsOn()                               facts(...): see AUTHORING.md, "Answers that are remembered"
//   admit(request)                            allow, cachedOnly or deny(...)
//   route(request, candidates)                pass, to(...) or deny(...)
//   onFailure(request, attempts, remaining)   pass, next, divert(...), serveStale, waitMs(...), stop or deny(...)
//   inspect(request)                          release, hold(...) or deny(...)
//   judge(request, cached)                    pass, serve, revalidate or pin(...)
//
// An exception fails the call, and its text is the reason in the proxy's log. What the host offers are the objects
// `call`, `clock`, `config`, `image`, `log`, `metrics`, `registry` and `state`; `wit/` describes them, with names in
// camel case: `call.userAgent()`. What is not there is null; a 64-bit number is a number, exact up to 2^53; what the host
// refuses is thrown as an error with a `payload`, such as `"key-too-long"` or `{ tag: "unavailable", val: "..." }`.

import * as call from "tidegate:policy/call@0.1.0";
import * as clock from "tidegate:policy/clock@0.1.0";
import * as config from "tidegate:policy/config@0.1.0";
import * as image from "tidegate:policy/image@0.1.0";
import * as log from "tidegate:policy/log@0.1.0";
import * as metrics from "tidegate:policy/metrics@0.1.0";
import * as lookups from "tidegate:policy/registry@0.1.0";
import * as memory from "tidegate:policy/state@0.1.0";

export { call, clock, config, image, log, metrics };

// The engine wants all arguments: here those at the end that are options may be left out.
export const registry = {
  ...lookups,
  referrers: (digest, artifactType) => lookups.referrers(digest, artifactType),
};
export const state = {
  ...memory,
  set: (key, value, ttlSecs) => memory.set(key, value, ttlSecs),
  setOnce: (key, value, ttlSecs) => memory.setOnce(key, value, ttlSecs),
  add: (key, delta, ttlSecs) => memory.add(key, delta, ttlSecs),
};

// The engine has no console: what is printed goes to the proxy's log.
const say =
  (level) =>
  (...words) =>
    log.write(level, words.map((word) => (typeof word === "string" ? word : JSON.stringify(word))).join(" "));
globalThis.console ??= { debug: say("debug"), log: say("info"), info: say("info"), warn: say("warn"), error: say("error") };

export const allow = { tag: "allow" };
export const cachedOnly = { tag: "cached-only" };
export const pass = { tag: "pass" };
export const next = { tag: "next" };
export const serveStale = { tag: "serve-stale" };
export const stop = { tag: "stop" };
export const release = { tag: "release" };
export const serve = { tag: "serve" };
export const revalidate = { tag: "revalidate" };

/** The client is told the message, which names what is denied, and why. */
export function deny(message, { status = 403, code = "DENIED", retryAfterSecs } = {}) {
  return { tag: "deny", val: { status, code, message, retryAfterSecs } };
}

/** What answers depend on: "client", "headers", "time", "state", "lookups". None: on the request alone. */
export const facts = (...names) => Object.fromEntries(names.map((name) => [name, true]));

/** These candidates, in this order; none: only the cache may serve. */
export const to = (...candidates) => ({ tag: "to", val: candidates });
/** This candidate now, then those that remain. */
export const divert = (candidate) => ({ tag: "divert", val: candidate });
/** Wait, then try the same candidate again. */
export const waitMs = (milliseconds) => ({ tag: "wait-ms", val: milliseconds });
/** Not now: the client may ask again after so many seconds. */
export const hold = (message, forSecs) => ({ tag: "hold", val: { forSecs, message } });
/** The tag stands for this digest. */
export const pin = (digest) => ({ tag: "pin", val: digest });

/** A registry by name, with the repository that the client asked for or with another one. */
export const candidate = (registry, repository) => ({ registry, repository, options: [] });

/** The tag; undefined when the content is named by its digest, or not at all. */
export const tag = (request) => (request.reference.tag === "tag" ? request.reference.val : undefined);
/** The digest; undefined when the content is named by a tag, or not at all. */
export const digest = (request) => (request.reference.tag === "digest" ? request.reference.val : undefined);

/** As people write it: `docker.io/library/alpine:3`. */
export function name(request) {
  const { registry, repository, reference } = request;
  const mark = { tag: ":", digest: "@" }[reference.tag];
  return `${registry}/${repository}${mark ? mark + reference.val : ""}`;
}
