// Generated. Including this, in one file only, makes the plugin have the hook `lifecycle`. It then has the
// function that is declared here; what is passed in is freed when that returns.
#ifndef TIDEGATE_HOOK_LIFECYCLE
#define TIDEGATE_HOOK_LIFECYCLE

#include "tidegate.h"

bool tidegate_lifecycle_check(tidegate_string_t *err);

__attribute__((__aligned__(8))) static uint8_t tidegate_lifecycle_ret[(16+8*sizeof(void*))];

__attribute__((__weak__, __export_name__("cabi_post_tidegate:policy/lifecycle@0.1.0#check")))
void __wasm_export_tidegate_lifecycle_check_post_return(uint8_t * arg0) {
  switch ((int32_t) (int32_t) *((uint8_t*) (arg0 + 0))) {
    case 0: {
      break;
    }
    case 1: {
      if ((*((size_t*) (arg0 + (2*sizeof(void*))))) > 0) {
        free(*((uint8_t **) (arg0 + sizeof(void*))));
      }
      break;
    }
  }
}

__attribute__((__export_name__("tidegate:policy/lifecycle@0.1.0#check")))
uint8_t * __wasm_export_tidegate_lifecycle_check(void) {
  tidegate_lifecycle_result_void_string_t ret;
  tidegate_string_t err = {NULL, 0};
  ret.is_err = !tidegate_lifecycle_check(&err);
  if (ret.is_err) {
    if (err.ptr == NULL) tidegate_fail("tidegate_lifecycle_check failed without a text");
    ret.val.err = err;
  }
  uint8_t *ptr = (uint8_t *) &tidegate_lifecycle_ret;
  if ((ret).is_err) {
    const tidegate_string_t *payload0 = &(ret).val.err;*((int8_t*)(ptr + 0)) = 1;
    *((size_t*)(ptr + (2*sizeof(void*)))) = (*payload0).len;
    *((uint8_t **)(ptr + sizeof(void*))) = (uint8_t *) (*payload0).ptr;
  } else {
    *((int8_t*)(ptr + 0)) = 0;
  }
  tidegate_flush();
  return ptr;
}

#endif
