// Keeps the tag `latest` out, and warns of other tags that move.

#include "admission.h"

// Registries of our own: whoever pushes to them knows what `latest` is.
static const char *const OWN[] = {"registry.example.com", "ghcr.io"};

static bool is_own(tidegate_string_t registry) {
  for (size_t i = 0; i < sizeof OWN / sizeof *OWN; i++) {
    if (tidegate_is(registry, OWN[i])) return true;
  }
  return false;
}

static bool has_digit(tidegate_string_t tag) {
  for (size_t i = 0; i < tag.len; i++) {
    if (tag.ptr[i] >= '0' && tag.ptr[i] <= '9') return true;
  }
  return false;
}

void tidegate_admission_admit(tidegate_request_t *request, tidegate_admission_verdict_t *verdict) {
  verdict->tag = TIDEGATE_ADMISSION_VERDICT_ALLOW;
  const tidegate_string_t *tag = tidegate_tag(request);
  if (tag == NULL) return;
  tidegate_string_t name = tidegate_name(request);
  if (tidegate_is(*tag, "latest") && !is_own(request->registry)) {
    verdict->tag = TIDEGATE_ADMISSION_VERDICT_DENY;
    verdict->val.deny = tidegate_denial(
        tidegate_text("%.*s is denied: `latest` is another image tomorrow, name a version", TEXT(name)));
  } else if (!has_digit(*tag)) {
    tidegate_warn("%.*s moves: a version or a digest stays what it is", TEXT(name));
  }
  tidegate_string_free(&name);
}
