// Generated. Including this, in one file only, makes the plugin have the hook `freshness`. It then has the
// function that is declared here; what is passed in is freed when that returns.
#ifndef TIDEGATE_HOOK_FRESHNESS
#define TIDEGATE_HOOK_FRESHNESS

#include "tidegate.h"

void tidegate_freshness_judge(tidegate_freshness_request_t *request, tidegate_freshness_cached_tag_t *maybe_cached, tidegate_freshness_rule_t *ret);

__attribute__((__aligned__(8))) static uint8_t tidegate_freshness_ret[(16+8*sizeof(void*))];

__attribute__((__weak__, __export_name__("cabi_post_tidegate:policy/freshness@0.1.0#judge")))
void __wasm_export_tidegate_freshness_judge_post_return(uint8_t * arg0) {
  switch ((int32_t) (int32_t) *((uint8_t*) (arg0 + 0))) {
    case 0: {
      break;
    }
    case 1: {
      break;
    }
    case 2: {
      break;
    }
    case 3: {
      if ((*((size_t*) (arg0 + (2*sizeof(void*))))) > 0) {
        free(*((uint8_t **) (arg0 + sizeof(void*))));
      }
      break;
    }
  }
}

__attribute__((__export_name__("tidegate:policy/freshness@0.1.0#judge")))
uint8_t * __wasm_export_tidegate_freshness_judge(int32_t arg, int32_t arg0, uint8_t * arg1, size_t arg2, uint8_t * arg3, size_t arg4, int32_t arg5, uint8_t * arg6, size_t arg7, int32_t arg8, uint8_t * arg9, size_t arg10, int32_t arg11) {
  tidegate_reference_t variant;
  variant.tag = arg5;
  switch ((int32_t) variant.tag) {
    case 0: {
      break;
    }
    case 1: {
      variant.val.tag = (tidegate_string_t) { (uint8_t*)(arg6), (arg7) };
      break;
    }
    case 2: {
      variant.val.digest = (tidegate_string_t) { (uint8_t*)(arg6), (arg7) };
      break;
    }
  }
  tidegate_freshness_option_cached_tag_t option;
  switch (arg8) {
    case 0: {
      option.is_some = false;
      break;
    }
    case 1: {
      option.is_some = true;
      option.val = (tidegate_freshness_cached_tag_t) {
        (tidegate_string_t) (tidegate_string_t) { (uint8_t*)(arg9), (arg10) },
        (uint32_t) (uint32_t) (arg11),
      };
      break;
    }
  }
  tidegate_freshness_request_t arg12 = (tidegate_request_t) {
    (tidegate_action_t) arg,
    (tidegate_content_t) arg0,
    (tidegate_string_t) (tidegate_string_t) { (uint8_t*)(arg1), (arg2) },
    (tidegate_string_t) (tidegate_string_t) { (uint8_t*)(arg3), (arg4) },
    (tidegate_reference_t) variant,
  };
  tidegate_freshness_rule_t ret = {.tag = TIDEGATE_UNSET};
  tidegate_freshness_judge(&arg12, option.is_some ? &(option.val) : NULL, &ret);
  tidegate_freshness_request_free(&arg12);
  tidegate_freshness_option_cached_tag_free(&option);
  uint8_t *ptr = (uint8_t *) &tidegate_freshness_ret;
  switch ((int32_t) (ret).tag) {
    case 0: {
      *((int8_t*)(ptr + 0)) = 0;
      break;
    }
    case 1: {
      *((int8_t*)(ptr + 0)) = 1;
      break;
    }
    case 2: {
      *((int8_t*)(ptr + 0)) = 2;
      break;
    }
    case 3: {
      const tidegate_string_t *payload15 = &(ret).val.pin;
      *((int8_t*)(ptr + 0)) = 3;
      *((size_t*)(ptr + (2*sizeof(void*)))) = (*payload15).len;
      *((uint8_t **)(ptr + sizeof(void*))) = (uint8_t *) (*payload15).ptr;
      break;
    }
    default: tidegate_unanswered("tidegate_freshness_judge", (ret).tag);
  }
  tidegate_flush();
  return ptr;
}

#endif
