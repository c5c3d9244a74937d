// Keeps the tag `latest` out, and warns of other tags that move.

import { allow, call, deny, name, tag } from "./tidegate/tidegate.js";

// Registries of our own: whoever pushes to them knows what `latest` is.
const OWN = ["registry.example.com", "ghcr.io"];

export default {
  admit(request) {
    const named = tag(request);
    if (named === undefined) return allow;
    if (named === "latest" && !OWN.includes(request.registry)) {
      return deny(`${name(request)} is denied: \`latest\` is another image tomorrow, name a version`);
    }
    if (!/[0-9]/.test(named)) {
      call.warn(`${name(request)} moves: a version or a digest stays what it is`);
    }
    return allow;
  },
};
