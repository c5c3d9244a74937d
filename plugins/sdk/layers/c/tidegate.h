// What a Tidegate plugin in C is built on.
//
// A plugin includes the headers of the hooks that it wants (`admission.h`, `routing.h`, `fallback.h`, `inspection.h`,
// `freshness.h`, `lifecycle.h`), each in one file only, and has the function that the header declares. `bindings.h` has
// everything that the host offers; `wit/` describes it.
//
// A text is an address and a length, without a zero at its end: print it with `%.*s` and `TEXT(text)`. What a function
// answers with must be memory of malloc, and is freed when the host has it; what it is passed is freed after it.
#ifndef TIDEGATE_H
#define TIDEGATE_H

#include <stdlib.h>

#include "bindings.h"

/// For `%.*s`.
#define TEXT(text) (int)(text).len, (const char *)(text).ptr

/// A text of one's own, in memory of malloc, as printf makes it of `%s`, `%.*s`, `%d`, `%u` and `%%`.
tidegate_string_t tidegate_text(const char *format, ...) __attribute__((__format__(__printf__, 1, 2)));

/// Whether a text is this word.
bool tidegate_is(tidegate_string_t text, const char *word);

/// The tag; NULL when the content is named by its digest, or not at all.
const tidegate_string_t *tidegate_tag(const tidegate_request_t *request);

/// As people write it: `docker.io/library/alpine:3`. To be freed with `tidegate_string_free`.
tidegate_string_t tidegate_name(const tidegate_request_t *request);

/// A 403 with the code `DENIED`. The message becomes the denial's.
tidegate_denial_t tidegate_denial(tidegate_string_t message);

/// A warning for the client, in the answer's header: newer container tools print it, others ignore it.
void tidegate_warn(const char *format, ...) __attribute__((__format__(__printf__, 1, 2)));

/// Fails the call: the text is the reason in the proxy's log.
_Noreturn void tidegate_fail(const char *format, ...) __attribute__((__format__(__printf__, 1, 2)));

// For the headers of the hooks.

/// The tag of an answer that a hook has not set: none of the cases.
#define TIDEGATE_UNSET 255

/// Fails the call of a hook whose answer is none of the cases.
_Noreturn void tidegate_unanswered(const char *hook, unsigned tag);

/// Gives the host what was printed, so that it is told with this call.
void tidegate_flush(void);

#endif
