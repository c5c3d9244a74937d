// Generated. Including this, in one file only, makes the plugin have the hook `routing`. It then has the
// function that is declared here; what is passed in is freed when that returns.
#ifndef TIDEGATE_HOOK_ROUTING
#define TIDEGATE_HOOK_ROUTING

#include "tidegate.h"

void tidegate_routing_route(tidegate_routing_request_t *request, tidegate_routing_list_candidate_t *candidates, tidegate_routing_routes_t *ret);

__attribute__((__aligned__(8))) static uint8_t tidegate_routing_ret[(16+8*sizeof(void*))];

__attribute__((__weak__, __export_name__("cabi_post_tidegate:policy/routing@0.1.0#route")))
void __wasm_export_tidegate_routing_route_post_return(uint8_t * arg0) {
  switch ((int32_t) (int32_t) *((uint8_t*) (arg0 + 0))) {
    case 0: {
      break;
    }
    case 1: {
      size_t len0 = *((size_t*) (arg0 + (2*sizeof(void*))));
      if (len0 > 0) {
        uint8_t *ptr1 = *((uint8_t **) (arg0 + sizeof(void*)));
        for (size_t i2 = 0; i2 < len0; i2++) {
          uint8_t *base = ptr1 + i2 * (16+7*sizeof(void*));
          (void) base;
          if ((*((size_t*) (base + sizeof(void*)))) > 0) {
            free(*((uint8_t **) (base + 0)));
          }
          switch ((int32_t) (int32_t) *((uint8_t*) (base + (2*sizeof(void*))))) {
            case 0: {
              break;
            }
            case 1: {
              if ((*((size_t*) (base + (4*sizeof(void*))))) > 0) {
                free(*((uint8_t **) (base + (3*sizeof(void*)))));
              }
              break;
            }
          }
          size_t len = *((size_t*) (base + (16+6*sizeof(void*))));
          if (len > 0) {
            uint8_t *ptr = *((uint8_t **) (base + (16+5*sizeof(void*))));
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
        }
        free(ptr1);
      }
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

__attribute__((__export_name__("tidegate:policy/routing@0.1.0#route")))
uint8_t * __wasm_export_tidegate_routing_route(int32_t arg, int32_t arg0, uint8_t * arg1, size_t arg2, uint8_t * arg3, size_t arg4, int32_t arg5, uint8_t * arg6, size_t arg7, uint8_t * arg8, size_t arg9) {
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
  tidegate_routing_request_t arg12 = (tidegate_request_t) {
    (tidegate_action_t) arg,
    (tidegate_content_t) arg0,
    (tidegate_string_t) (tidegate_string_t) { (uint8_t*)(arg1), (arg2) },
    (tidegate_string_t) (tidegate_string_t) { (uint8_t*)(arg3), (arg4) },
    (tidegate_reference_t) variant,
  };
  tidegate_routing_list_candidate_t arg13 = (tidegate_routing_list_candidate_t) { (tidegate_routing_candidate_t*)(arg8), (arg9) };
  tidegate_routing_routes_t ret = {.tag = TIDEGATE_UNSET};
  tidegate_routing_route(&arg12, &arg13, &ret);
  tidegate_routing_request_free(&arg12);
  tidegate_routing_list_candidate_free(&arg13);
  uint8_t *ptr = (uint8_t *) &tidegate_routing_ret;
  switch ((int32_t) (ret).tag) {
    case 0: {
      *((int8_t*)(ptr + 0)) = 0;
      break;
    }
    case 1: {
      const tidegate_routing_list_candidate_t *payload14 = &(ret).val.to;
      *((int8_t*)(ptr + 0)) = 1;
      *((size_t*)(ptr + (2*sizeof(void*)))) = (*payload14).len;
      *((uint8_t **)(ptr + sizeof(void*))) = (uint8_t *) (*payload14).ptr;
      break;
    }
    case 2: {
      const tidegate_routing_denial_t *payload21 = &(ret).val.deny;
      *((int8_t*)(ptr + 0)) = 2;
      *((int16_t*)(ptr + sizeof(void*))) = (int32_t) ((*payload21).status);
      *((size_t*)(ptr + (3*sizeof(void*)))) = ((*payload21).code).len;
      *((uint8_t **)(ptr + (2*sizeof(void*)))) = (uint8_t *) ((*payload21).code).ptr;
      *((size_t*)(ptr + (5*sizeof(void*)))) = ((*payload21).message).len;
      *((uint8_t **)(ptr + (4*sizeof(void*)))) = (uint8_t *) ((*payload21).message).ptr;
      if (((*payload21).retry_after_secs).is_some) {
        const uint32_t *payload23 = &((*payload21).retry_after_secs).val;
        *((int8_t*)(ptr + (6*sizeof(void*)))) = 1;
        *((int32_t*)(ptr + (4+6*sizeof(void*)))) = (int32_t) (*payload23);
      } else {
        *((int8_t*)(ptr + (6*sizeof(void*)))) = 0;
      }
      break;
    }
    default: tidegate_unanswered("tidegate_routing_route", (ret).tag);
  }
  tidegate_flush();
  return ptr;
}

#endif
