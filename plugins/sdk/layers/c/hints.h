// Generated. Including this, in one file only, makes the plugin have the hook `hints`. It then has the
// function that is declared here; what is passed in is freed when that returns.
#ifndef TIDEGATE_HOOK_HINTS
#define TIDEGATE_HOOK_HINTS

#include "tidegate.h"

tidegate_hints_facts_t tidegate_hints_depends_on(void);


__attribute__((__export_name__("tidegate:policy/hints@0.1.0#depends-on")))
int32_t __wasm_export_tidegate_hints_depends_on(void) {
  tidegate_hints_facts_t ret = tidegate_hints_depends_on();
  return ret;
}

#endif
