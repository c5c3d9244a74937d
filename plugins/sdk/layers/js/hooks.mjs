// Prints the hooks of a plugin, a line each: node hooks.mjs /path/of/plugin.js

import { register } from "node:module";
import { pathToFileURL } from "node:url";

const HOOKS = {
  check: "lifecycle",
  dependsOn: "hints",
  admit: "admission",
  route: "routing",
  onFailure: "fallback",
  inspect: "inspection",
  judge: "freshness",
};

// The host is not here: its modules are empty ones.
const loader = `
  export const resolve = (specifier, context, next) =>
    specifier.startsWith("tidegate:")
      ? { url: "data:text/javascript,//" + specifier, shortCircuit: true }
      : next(specifier, context);
`;
register(`data:text/javascript,${encodeURIComponent(loader)}`);

const refuse = (reason) => {
  console.error(reason);
  process.exit(1);
};

const path = process.argv[2];
const { default: plugin } = await import(pathToFileURL(path).href).catch((error) => refuse(`${path}: ${error}`));
if (plugin === null || typeof plugin !== "object") {
  refuse(`${path}: there is no \`export default { ... }\`: the methods of that object are the plugin's hooks`);
}
const methods = Object.keys(plugin).filter((key) => typeof plugin[key] === "function");
const names = Object.keys(HOOKS).join(", ");
for (const method of methods) {
  if (!(method in HOOKS) && !method.startsWith("_")) {
    refuse(`${path}: \`${method}\` is no hook: the hooks are ${names}; the name of another method begins with \`_\``);
  }
}
const hooks = methods.filter((method) => method in HOOKS);
if (hooks.length === 0) refuse(`${path}: the plugin has no hook: they are ${names}`);
for (const method of hooks) console.log(HOOKS[method]);
