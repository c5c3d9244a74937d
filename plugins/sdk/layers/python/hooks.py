"""Prints the hooks of the class `Plugin` in a file, a line each, without running it."""

import ast
import sys

HOOKS = {
    "check": "lifecycle",
    "depends_on": "hints",
    "admit": "admission",
    "route": "routing",
    "on_failure": "fallback",
    "inspect": "inspection",
    "judge": "freshness",
}


def main(path: str) -> None:
    with open(path, encoding="utf-8") as file:
        try:
            tree = ast.parse(file.read(), path)
        except SyntaxError as error:
            sys.exit(f"{path}:{error.lineno}: {error.msg}")
    plugins = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Plugin"]
    if not plugins:
        sys.exit(f"{path}: there is no class `Plugin`: its methods are the plugin's hooks")
    methods = [node for node in plugins[-1].body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    for method in methods:
        if method.name not in HOOKS and not method.name.startswith("_"):
            sys.exit(
                f"{path}:{method.lineno}: `{method.name}` is no hook: the hooks are {', '.join(HOOKS)}; "
                "the name of another method begins with `_`"
            )
    found = [HOOKS[method.name] for method in methods if method.name in HOOKS]
    if not found:
        sys.exit(f"{path}: the class `Plugin` has no hook: they are {', '.join(HOOKS)}")
    print("\n".join(found))


main(sys.argv[1])
