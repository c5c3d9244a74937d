// Generated. Including this, in one file only, makes the plugin have the hook `fallback`. It then has the
// function that is declared here; what is passed in is freed when that returns.
#ifndef TIDEGATE_HOOK_FALLBACK
#define TIDEGATE_HOOK_FALLBACK

#include "tidegate.h"

void tidegate_fallback_on_failure(tidegate_fallback_request_t *request, tidegate_fallback_list_attempt_t *attempts, tidegate_fallback_list_candidate_t *remaining, tidegate_fallback_step_t *ret);

__attribute__((__aligned__(8))) static uint8_t tidegate_fallback_ret[(16+8*sizeof(void*))];

__attribute__((__weak__, __export_name__("cabi_post_tidegate:policy/fallback@0.1.0#on-failure")))
void __wasm_export_tidegate_fallback_on_failure_post_return(uint8_t * arg0) {
  switch ((int32_t) (int32_t) *((uint8_t*) (arg0 + 0))) {
    case 0: {
      break;
    }
    case 1: {
      break;
    }
    case 2: {
      if ((*((size_t*) (arg0 + (2*sizeof(void*))))) > 0) {
        free(*((uint8_t **) (arg0 + sizeof(void*))));
      }
      switch ((int32_t) (int32_t) *((uint8_t*) (arg0 + (3*sizeof(void*))))) {
        case 0: {
          break;
        }
        case 1: {
          if ((*((size_t*) (arg0 + (5*sizeof(void*))))) > 0) {
            free(*((uint8_t **) (arg0 + (4*sizeof(void*)))));
          }
          break;
        }
      }
      size_t len = *((size_t*) (arg0 + (16+7*sizeof(void*))));
      if (len > 0) {
        uint8_t *ptr = *((uint8_t **) (arg0 + (16+6*sizeof(void*))));
        for (size_t i = 0; i < len; i++) {
          uint8_t *base = ptr + i * (4*sizeof(void*));
          (void) base;
          if ((*((size_t*) (base + sizeof(void*)))) > 0) {
            free(*((uint8_t **) (base + 0)));
          }
          if ((*((size_t*) (base + (3*sizeof(void*))))) > 0) {
            free(*((uint8_t **) (base + (2*sizeof(void*)))));
          }
        }
        free(ptr);
      }
      break;
    }
    case 3: {
      break;
    }
    case 4: {
      break;
    }
    case 5: {
      break;
    }
    case 6: {
      if ((*((size_t*) (arg0 + (3*sizeof(void*))))) > 0) {
        free(*((uint8_t **) (arg0 + (2*sizeof(void*)))));
      }
      if ((*((size_t*) (arg0 + (5*sizeof(void*))))) > 0) {
        free(*((uint8_t **) (arg0 + (4*sizeof(void*)))));
      }
      break;
    }
  }
}

__attribute__((__export_name__("tidegate:policy/fallback@0.1.0#on-failure")))
uint8_t * __wasm_export_tidegate_fallback_on_failure(int32_t arg, int32_t arg0, uint8_t * arg1, size_t arg2, uint8_t * arg3, size_t arg4, int32_t arg5, uint8_t * arg6, size_t arg7, uint8_t * arg8, size_t arg9, uint8_t * arg10, size_t arg11) {
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
  tidegate_fallback_request_t arg19 = (tidegate_request_t) {
    (tidegate_action_t) arg,
    (tidegate_content_t) arg0,
    (tidegate_string_t) (tidegate_string_t) { (uint8_t*)(arg1), (arg2) },
    (tidegate_string_t) (tidegate_string_t) { (uint8_t*)(arg3), (arg4) },
    (tidegate_reference_t) variant,
  };
  tidegate_fallback_list_attempt_t arg20 = (tidegate_fallback_list_attempt_t) { (tidegate_fallback_attempt_t*)(arg8), (arg9) };
  tidegate_fallback_list_candidate_t arg21 = (tidegate_fallback_list_candidate_t) { (tidegate_fallback_candidate_t*)(arg10), (arg11) };
  tidegate_fallback_step_t ret = {.tag = TIDEGATE_UNSET};
  tidegate_fallback_on_failure(&arg19, &arg20, &arg21, &ret);
  tidegate_fallback_request_free(&arg19);
  tidegate_fallback_list_attempt_free(&arg20);
  tidegate_fallback_list_candidate_free(&arg21);
  uint8_t *ptr = (uint8_t *) &tidegate_fallback_ret;
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
      const tidegate_fallback_candidate_t *payload23 = &(ret).val.divert;
      *((int8_t*)(ptr + 0)) = 2;
      *((size_t*)(ptr + (2*sizeof(void*)))) = ((*payload23).registry).len;
      *((uint8_t **)(ptr + sizeof(void*))) = (uint8_t *) ((*payload23).registry).ptr;
      if (((*payload23).repository).is_some) {
        const tidegate_string_t *payload25 = &((*payload23).repository).val;
        *((int8_t*)(ptr + (3*sizeof(void*)))) = 1;
        *((size_t*)(ptr + (5*sizeof(void*)))) = (*payload25).len;
        *((uint8_t **)(ptr + (4*sizeof(void*)))) = (uint8_t *) (*payload25).ptr;
      } else {
        *((int8_t*)(ptr + (3*sizeof(void*)))) = 0;
      }
      if (((*payload23).timeout_ms).is_some) {
        const uint32_t *payload27 = &((*payload23).timeout_ms).val;
        *((int8_t*)(ptr + (6*sizeof(void*)))) = 1;
        *((int32_t*)(ptr + (4+6*sizeof(void*)))) = (int32_t) (*payload27);
      } else {
        *((int8_t*)(ptr + (6*sizeof(void*)))) = 0;
      }
      if (((*payload23).hedge_after_ms).is_some) {
        const uint32_t *payload29 = &((*payload23).hedge_after_ms).val;
        *((int8_t*)(ptr + (8+6*sizeof(void*)))) = 1;
        *((int32_t*)(ptr + (12+6*sizeof(void*)))) = (int32_t) (*payload29);
      } else {
        *((int8_t*)(ptr + (8+6*sizeof(void*)))) = 0;
      }
      *((size_t*)(ptr + (16+7*sizeof(void*)))) = ((*payload23).options).len;
      *((uint8_t **)(ptr + (16+6*sizeof(void*)))) = (uint8_t *) ((*payload23).options).ptr;
      break;
    }
    case 3: {
      *((int8_t*)(ptr + 0)) = 3;
      break;
    }
    case 4: {
      const uint32_t *payload31 = &(ret).val.wait_ms;
      *((int8_t*)(ptr + 0)) = 4;
      *((int32_t*)(ptr + sizeof(void*))) = (int32_t) (*payload31);
      break;
    }
    case 5: {
      *((int8_t*)(ptr + 0)) = 5;
      break;
    }
    case 6: {
      const tidegate_fallback_denial_t *payload33 = &(ret).val.deny;
      *((int8_t*)(ptr + 0)) = 6;
      *((int16_t*)(ptr + sizeof(void*))) = (int32_t) ((*payload33).status);
      *((size_t*)(ptr + (3*sizeof(void*)))) = ((*payload33).code).len;
      *((uint8_t **)(ptr + (2*sizeof(void*)))) = (uint8_t *) ((*payload33).code).ptr;
      *((size_t*)(ptr + (5*sizeof(void*)))) = ((*payload33).message).len;
      *((uint8_t **)(ptr + (4*sizeof(void*)))) = (uint8_t *) ((*payload33).message).ptr;
      if (((*payload33).retry_after_secs).is_some) {
        const uint32_t *payload35 = &((*payload33).retry_after_secs).val;
        *((int8_t*)(ptr + (6*sizeof(void*)))) = 1;
        *((int32_t*)(ptr + (4+6*sizeof(void*)))) = (int32_t) (*payload35);
      } else {
        *((int8_t*)(ptr + (6*sizeof(void*)))) = 0;
      }
      break;
    }
    default: tidegate_unanswered("tidegate_fallback_on_failure", (ret).tag);
  }
  tidegate_flush();
  return ptr;
}

#endif
