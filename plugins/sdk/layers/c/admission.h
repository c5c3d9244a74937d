// Generated. Including this, in one file only, makes the plugin have the hook `admission`. It then has the
// function that is declared here; what is passed in is freed when that returns.
#ifndef TIDEGATE_HOOK_ADMISSION
#define TIDEGATE_HOOK_ADMISSION

#include "tidegate.h"

void tidegate_admission_admit(tidegate_admission_request_t *request, tidegate_admission_verdict_t *ret);

__attribute__((__aligned__(8))) static uint8_t tidegate_admission_ret[(16+8*sizeof(void*))];

__attribute__((__weak__, __export_name__("cabi_post_tidegate:policy/admission@0.1.0#admit")))
void __wasm_export_tidegate_admission_admit_post_return(uint8_t * arg0) {
  switch ((int32_t) (int32_t) *((uint8_t*) (arg0 + 0))) {
    case 0: {
      break;
    }
    case 1: {
      break;
    }
    case 2: {
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

__attribute__((__export_name__("tidegate:policy/admission@0.1.0#admit")))
uint8_t * __wasm_export_tidegate_admission_admit(int32_t arg, int32_t arg0, uint8_t * arg1, size_t arg2, uint8_t * arg3, size_t arg4, int32_t arg5, uint8_t * arg6, size_t arg7) {
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
  tidegate_admission_request_t arg8 = (tidegate_request_t) {
    (tidegate_action_t) arg,
    (tidegate_content_t) arg0,
    (tidegate_string_t) (tidegate_string_t) { (uint8_t*)(arg1), (arg2) },
    (tidegate_string_t) (tidegate_string_t) { (uint8_t*)(arg3), (arg4) },
    (tidegate_reference_t) variant,
  };
  tidegate_admission_verdict_t ret = {.tag = TIDEGATE_UNSET};
  tidegate_admission_admit(&arg8, &ret);
  tidegate_admission_request_free(&arg8);
  uint8_t *ptr = (uint8_t *) &tidegate_admission_ret;
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
      const tidegate_admission_denial_t *payload10 = &(ret).val.deny;
      *((int8_t*)(ptr + 0)) = 2;
      *((int16_t*)(ptr + sizeof(void*))) = (int32_t) ((*payload10).status);
      *((size_t*)(ptr + (3*sizeof(void*)))) = ((*payload10).code).len;
      *((uint8_t **)(ptr + (2*sizeof(void*)))) = (uint8_t *) ((*payload10).code).ptr;
      *((size_t*)(ptr + (5*sizeof(void*)))) = ((*payload10).message).len;
      *((uint8_t **)(ptr + (4*sizeof(void*)))) = (uint8_t *) ((*payload10).message).ptr;
      if (((*payload10).retry_after_secs).is_some) {
        const uint32_t *payload12 = &((*payload10).retry_after_secs).val;
        *((int8_t*)(ptr + (6*sizeof(void*)))) = 1;
        *((int32_t*)(ptr + (4+6*sizeof(void*)))) = (int32_t) (*payload12);
      } else {
        *((int8_t*)(ptr + (6*sizeof(void*)))) = 0;
      }
      break;
    }
    default: tidegate_unanswered("tidegate_admission_admit", (ret).tag);
  }
  tidegate_flush();
  return ptr;
}

#endif
