// Stands between the host and the plugin: an exception is told to the operator before it fails the call.

import { log } from "./tidegate.js";

/** What each hook may answer. */
const ANSWERS = {
  admit: ["allow", "cached-only", "deny"],
  route: ["pass", "to", "deny"],
  onFailure: ["pass", "next", "divert", "serve-stale", "wait-ms", "stop", "deny"],
  inspect: ["release", "hold", "deny"],
  judge: ["pass", "serve", "revalidate", "pin"],
};

/** The text of an exception, and where in the plugin it was thrown. What the host refuses is its payload. */
function reason(error) {
  if (!(error instanceof Error)) return String(error);
  const { payload } = error;
  const message = payload === undefined ? error.message : (payload.val ?? payload.tag ?? payload);
  const place = /plugin\.js:[0-9]+/.exec(error.stack ?? "");
  return `${error.name}: ${message}${place ? ` (${place[0]})` : ""}`;
}

/** A method of the plugin, as the function of its hook. */
export const hook = (plugin, method) => (...given) => {
  try {
    const answer = plugin[method](...given);
    if (method === "dependsOn") return answer;
    if (method !== "check" && !ANSWERS[method].includes(answer?.tag)) {
      throw new TypeError(`${method} answers ${JSON.stringify(answer)}, which is none of ${ANSWERS[method].join(", ")}`);
    }
    return method === "check" ? undefined : answer;
  } catch (error) {
    // What `check` throws is its answer; what another throws fails the call.
    if (method === "check") throw reason(error);
    log.write("error", reason(error));
    throw error;
  }
};
