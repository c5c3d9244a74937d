#include "tidegate.h"

#include <stdarg.h>
#include <string.h>

/// A text that grows.
struct text {
  char *at;
  size_t len, room;
};

static void put(struct text *text, const char *from, size_t len) {
  if (len == 0) return;
  if (text->room - text->len < len) {
    text->room = 2 * text->room + len;
    text->at = realloc(text->at, text->room);
    if (text->at == NULL) abort();
  }
  memcpy(text->at + text->len, from, len);
  text->len += len;
}

static void put_number(struct text *text, unsigned number) {
  char digits[10];
  size_t at = sizeof digits;
  do {
    digits[--at] = (char)('0' + number % 10);
    number /= 10;
  } while (number != 0);
  put(text, digits + at, sizeof digits - at);
}

// Not vsnprintf: that of the C library brings files with it, and so imports that the host would have to fake.
static tidegate_string_t print(const char *format, va_list arguments) {
  struct text text = {NULL, 0, 0};
  for (;;) {
    size_t plain = strcspn(format, "%");
    put(&text, format, plain);
    format += plain;
    if (*format == 0) break;
    if (strncmp(format, "%.*s", 4) == 0) {
      int len = va_arg(arguments, int);
      put(&text, va_arg(arguments, const char *), (size_t)len);
      format += 4;
      continue;
    }
    switch (format[1]) {
      case 's': {
        const char *word = va_arg(arguments, const char *);
        put(&text, word, strlen(word));
        break;
      }
      case 'd': {
        int number = va_arg(arguments, int);
        if (number < 0) put(&text, "-", 1);
        put_number(&text, number < 0 ? 0u - (unsigned)number : (unsigned)number);
        break;
      }
      case 'u':
        put_number(&text, va_arg(arguments, unsigned));
        break;
      case '%':
        put(&text, "%", 1);
        break;
      default:
        abort();
    }
    format += 2;
  }
  return (tidegate_string_t){(uint8_t *)text.at, text.len};
}

tidegate_string_t tidegate_text(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  tidegate_string_t text = print(format, arguments);
  va_end(arguments);
  return text;
}

bool tidegate_is(tidegate_string_t text, const char *word) {
  return text.len == strlen(word) && memcmp(text.ptr, word, text.len) == 0;
}

const tidegate_string_t *tidegate_tag(const tidegate_request_t *request) {
  return request->reference.tag == TIDEGATE_REFERENCE_TAG ? &request->reference.val.tag : NULL;
}

tidegate_string_t tidegate_name(const tidegate_request_t *request) {
  const tidegate_reference_t *reference = &request->reference;
  const char *mark = "";
  tidegate_string_t end = {NULL, 0};
  if (reference->tag == TIDEGATE_REFERENCE_TAG) {
    mark = ":";
    end = reference->val.tag;
  } else if (reference->tag == TIDEGATE_REFERENCE_DIGEST) {
    mark = "@";
    end = reference->val.digest;
  }
  return tidegate_text("%.*s/%.*s%s%.*s", TEXT(request->registry), TEXT(request->repository), mark, TEXT(end));
}

tidegate_denial_t tidegate_denial(tidegate_string_t message) {
  return (tidegate_denial_t){.status = 403, .code = tidegate_text("DENIED"), .message = message};
}

void tidegate_warn(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  tidegate_string_t text = print(format, arguments);
  va_end(arguments);
  tidegate_call_warn(&text);
  tidegate_string_free(&text);
}

void tidegate_fail(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  tidegate_string_t text = print(format, arguments);
  va_end(arguments);
  tidegate_flush();
  tidegate_log_write(TIDEGATE_LOG_LEVEL_ERROR, &text);
  __builtin_trap();
}

void tidegate_unanswered(const char *hook, unsigned tag) {
  if (tag == TIDEGATE_UNSET) tidegate_fail("%s returned without an answer: its tag was not set", hook);
  tidegate_fail("%s answered with the tag %u, which is none of the cases", hook, tag);
}

// The C library's own way to write out its files at the end. It is there only in a plugin that prints: to name `fflush`
// or `stdout` would bring files into every other.
extern void __stdio_exit(void) __attribute__((__weak__));

void tidegate_flush(void) {
  if (__stdio_exit) __stdio_exit();
}

// As on a terminal, a line that is printed goes out by itself: that which says why must not be lost in a trap. The C
// library asks with the first of these when it first prints.
int __isatty(int file) {
  return file == 1 || file == 2;
}

int isatty(int file) {
  return __isatty(file);
}
