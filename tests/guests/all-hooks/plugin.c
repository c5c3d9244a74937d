// A plugin with every hook, which calls everything that the host offers.

#include <string.h>

#include "admission.h"
#include "fallback.h"
#include "freshness.h"
#include "hints.h"
#include "inspection.h"
#include "lifecycle.h"
#include "routing.h"

tidegate_hints_facts_t tidegate_hints_depends_on(void) {
  return TIDEGATE_HINTS_FACTS_CLIENT | TIDEGATE_HINTS_FACTS_STATE;
}

// Not to be freed.
static tidegate_string_t word(const char *of) {
  tidegate_string_t text;
  tidegate_string_set(&text, of);
  return text;
}

// To be freed.
static tidegate_string_t copy(tidegate_string_t of) {
  return tidegate_text("%.*s", TEXT(of));
}

// Puts a text behind another one, with a mark between them; both are used up.
static void add(tidegate_string_t *text, const char *mark, tidegate_string_t more) {
  tidegate_string_t both = tidegate_text("%.*s%s%.*s", TEXT(*text), text->len == 0 ? "" : mark, TEXT(more));
  tidegate_string_free(text);
  tidegate_string_free(&more);
  *text = both;
}

static tidegate_string_t next_line(tidegate_string_t *text) {
  uint8_t *end = memchr(text->ptr, '\n', text->len);
  tidegate_string_t line = {text->ptr, end == NULL ? text->len : (size_t)(end - text->ptr)};
  size_t step = end == NULL ? line.len : line.len + 1;
  text->ptr += step;
  text->len -= step;
  return line;
}

// The value of a key in the configuration, to be freed; an empty one where there is none. What is wrong with a line
// becomes `wrong`.
static tidegate_string_t setting(const char *key, tidegate_string_t *wrong) {
  tidegate_string_t found = {NULL, 0};
  tidegate_config_list_file_t files;
  tidegate_config_files(&files);
  for (size_t i = 0; i < files.len; i++) {
    tidegate_string_t text = files.ptr[i].text;
    for (unsigned number = 1; text.len > 0; number++) {
      tidegate_string_t line = next_line(&text);
      uint8_t *space = memchr(line.ptr, ' ', line.len);
      tidegate_string_t name = {line.ptr, space == NULL ? line.len : (size_t)(space - line.ptr)};
      if (space == NULL || (!tidegate_is(name, "mirror") && !tidegate_is(name, "pin"))) {
        if (wrong->len == 0) {
          *wrong = tidegate_text("%.*s:%u: `%.*s` is neither `mirror REGISTRY` nor `pin DIGEST`",
                                 TEXT(files.ptr[i].name), number, TEXT(line));
        }
      } else if (tidegate_is(name, key) && found.len == 0) {
        found = copy((tidegate_string_t){space + 1, line.len - name.len - 1});
      }
    }
  }
  tidegate_config_list_file_free(&files);
  return found;
}

// The same once the configuration is accepted.
static tidegate_string_t accepted(const char *key) {
  tidegate_string_t wrong = {NULL, 0};
  tidegate_string_t found = setting(key, &wrong);
  tidegate_string_free(&wrong);
  return found;
}

bool tidegate_lifecycle_check(tidegate_string_t *reason) {
  *reason = (tidegate_string_t){NULL, 0};
  tidegate_string_t mirror = setting("mirror", reason);
  if (reason->len == 0 && mirror.len == 0) *reason = tidegate_text("no file says `mirror REGISTRY`");
  tidegate_string_free(&mirror);
  return reason->len == 0;
}

static tidegate_string_t joined(tidegate_list_string_t *list) {
  tidegate_string_t text = {NULL, 0};
  for (size_t i = 0; i < list->len; i++) add(&text, "+", copy(list->ptr[i]));
  tidegate_list_string_free(list);
  return text;
}

static tidegate_string_t pairs(const tidegate_pair_t *pair, size_t len) {
  tidegate_string_t text = {NULL, 0};
  for (size_t i = 0; i < len; i++) {
    add(&text, "+", tidegate_text("%.*s=%.*s", TEXT(pair[i].key), TEXT(pair[i].value)));
  }
  return text;
}

// What is there, to be freed; else `none`.
static tidegate_string_t or_none(bool is_some, tidegate_string_t value) {
  return is_some ? value : tidegate_text("none");
}

static tidegate_string_t tell_state(void) {
  tidegate_string_t key = word("word"), first = word("first"), second = word("second"), once;
  uint32_t minute = 60;
  tidegate_option_string_t kept, gone;
  tidegate_state_error_t error;
  char letters[257];
  memset(letters, 'k', sizeof letters);
  tidegate_string_t long_key = {(uint8_t *)letters, sizeof letters};
  if (!tidegate_state_set(&key, &first, NULL, &error)) tidegate_fail("not set: error %d", error);
  if (!tidegate_state_set_once(&key, &second, &minute, &once, &error)) tidegate_fail("not set once: error %d", error);
  if (!tidegate_state_get(&key, &kept, &error)) tidegate_fail("not got: error %d", error);
  if (!tidegate_state_remove(&key, &error)) tidegate_fail("not removed: error %d", error);
  if (!tidegate_state_get(&key, &gone, &error)) tidegate_fail("not got: error %d", error);
  bool set = tidegate_state_set(&long_key, &first, NULL, &error);
  const char *last = !set && error == TIDEGATE_STATE_ERROR_KEY_TOO_LONG ? "key-too-long" : "set";
  tidegate_string_t text = tidegate_text("state=%.*s+%.*s+%s+%s", TEXT(once), TEXT(kept.val),
                                         gone.is_some ? "some" : "none", last);
  tidegate_string_free(&once);
  tidegate_option_string_free(&kept);
  tidegate_option_string_free(&gone);
  return text;
}

static tidegate_string_t tell(tidegate_request_t *request, unsigned pulls) {
  static const char *const CACHED[] = {"absent", "fresh", "stale"};
  uint64_t before = tidegate_clock_monotonic_ns();
  tidegate_warn("this was %s", "told");
  tidegate_string_t text = tidegate_name(request), value, name;
  tidegate_list_string_t list;
  tidegate_call_id(&value);
  add(&text, " id=", value);
  tidegate_call_client_address(&value);
  add(&text, " client=", value);
  tidegate_identity_t identity;
  bool known = tidegate_call_client(&identity);
  add(&text, " identity=", known ? copy(identity.subject) : tidegate_text("none"));
  if (known) tidegate_identity_free(&identity);
  tidegate_call_user_agent(&value);
  add(&text, " agent=", value);
  tidegate_call_accept(&list);
  add(&text, " accept=", joined(&list));
  name = word("X-Tell");
  tidegate_call_header(&name, &list);
  add(&text, " told=", joined(&list));
  name = word("method");
  known = tidegate_call_attribute(&name, &value);
  add(&text, " method=", or_none(known, value));
  name = word("nothing");
  known = tidegate_call_attribute(&name, &value);
  add(&text, " nothing=", or_none(known, value));
  add(&text, " cache=", tidegate_text("%s", CACHED[tidegate_call_cache()]));
  add(&text, " left=", tidegate_text("%s", tidegate_call_remaining_ms() > 0 ? "some" : "none"));
  add(&text, " clock=", tidegate_text("%s", tidegate_clock_monotonic_ns() >= before ? "on" : "back"));
  add(&text, " now=", tidegate_text("%u", (unsigned)(tidegate_clock_now_ms() / 1000)));
  add(&text, " ", tell_state());
  add(&text, " pulls=", tidegate_text("%u", pulls));
  return text;
}

void tidegate_admission_admit(tidegate_request_t *request, tidegate_admission_verdict_t *verdict) {
  int64_t pulls;
  tidegate_state_error_t error;
  uint32_t hour = 3600;
  if (!tidegate_state_add(&request->repository, 1, &hour, &pulls, &error)) tidegate_fail("no count: error %d", error);
  tidegate_string_t asked = word("asked"), gauge = word("pulls");
  tidegate_pair_t label = {word("repository"), request->repository};
  tidegate_metrics_list_pair_t labels = {&label, 1}, none = {NULL, 0};
  tidegate_metrics_increment(&asked, &labels, 2);
  tidegate_metrics_set(&gauge, &none, (double)pulls);
  verdict->tag = TIDEGATE_ADMISSION_VERDICT_ALLOW;
  if (tidegate_is(request->repository, "library/kept")) verdict->tag = TIDEGATE_ADMISSION_VERDICT_CACHED_ONLY;
  if (!tidegate_is(request->repository, "library/told")) return;
  verdict->tag = TIDEGATE_ADMISSION_VERDICT_DENY;
  verdict->val.deny = (tidegate_denial_t){429, tidegate_text("TOOMANYREQUESTS"), tell(request, (unsigned)pulls), {true, 7}};
}

static void look_in_vain(void) {
  tidegate_string_t reference = word("../x");
  tidegate_list_u8_t bytes;
  tidegate_registry_error_t error;
  if (tidegate_registry_manifest(&reference, &bytes, &error)) return;
  tidegate_fail("nothing found: %.*s", TEXT(error.val.unavailable));
}

void tidegate_routing_route(tidegate_request_t *request, tidegate_routing_list_candidate_t *candidates,
                            tidegate_routing_routes_t *routes) {
  routes->tag = TIDEGATE_ROUTING_ROUTES_PASS;
  if (tidegate_is(request->repository, "library/nowhere")) {
    routes->tag = TIDEGATE_ROUTING_ROUTES_DENY;
    routes->val.deny = tidegate_denial(tidegate_text("%.*s is nowhere", TEXT(candidates->ptr[0].registry)));
  }
  if (tidegate_is(request->repository, "library/failing")) look_in_vain();
  if (!tidegate_is(request->repository, "library/mirrored")) return;
  routes->tag = TIDEGATE_ROUTING_ROUTES_TO;
  tidegate_routing_list_candidate_t *to = &routes->val.to;
  to->ptr = calloc(candidates->len + 1, sizeof *to->ptr);
  to->len = candidates->len + 1;
  tidegate_pair_t *option = malloc(sizeof *option);
  *option = (tidegate_pair_t){tidegate_text("colour"), tidegate_text("blue")};
  to->ptr[0].registry = accepted("mirror");
  to->ptr[0].repository = (tidegate_option_string_t){true, tidegate_text("team/mirrored")};
  to->ptr[0].timeout_ms = (tidegate_option_u32_t){true, 30000};
  to->ptr[0].options = (tidegate_list_pair_t){option, 1};
  for (size_t i = 0; i < candidates->len; i++) to->ptr[i + 1].registry = copy(candidates->ptr[i].registry);
}

void tidegate_fallback_on_failure(tidegate_request_t *request, tidegate_fallback_list_attempt_t *attempts,
                                  tidegate_fallback_list_candidate_t *remaining, tidegate_fallback_step_t *step) {
  tidegate_attempt_t *last = &attempts->ptr[attempts->len - 1];
  step->tag = TIDEGATE_FALLBACK_STEP_PASS;
  if (last->failure.tag != TIDEGATE_FAILURE_STATUS) return;
  if (last->failure.val.status == 503 && attempts->len == 1) {
    step->tag = TIDEGATE_FALLBACK_STEP_WAIT_MS;
    step->val.wait_ms = 1;
    return;
  }
  if (last->failure.val.status == 503) {
    step->tag = TIDEGATE_FALLBACK_STEP_DIVERT;
    step->val.divert = (tidegate_candidate_t){.registry = accepted("mirror")};
    return;
  }
  if (remaining->len > 0) step->tag = TIDEGATE_FALLBACK_STEP_NEXT;
  if (remaining->len > 0 || !tidegate_is(request->repository, "library/mirrored")) return;
  tidegate_string_t tried = {NULL, 0};
  for (size_t i = 0; i < attempts->len; i++) {
    tidegate_candidate_t *of = &attempts->ptr[i].candidate;
    tidegate_string_t repository = of->repository.is_some ? of->repository.val : word("-");
    add(&tried, "+", tidegate_text("%.*s/%.*s", TEXT(of->registry), TEXT(repository)));
  }
  tidegate_string_t limits = pairs(last->rate_limit.ptr, last->rate_limit.len);
  tidegate_string_t message =
      tidegate_text("%d of %.*s, again after %u, %.*s, %u bytes", last->failure.val.status, TEXT(tried),
                    (unsigned)last->retry_after_secs.val, TEXT(limits), (unsigned)last->bytes);
  tidegate_string_free(&tried);
  tidegate_string_free(&limits);
  step->tag = TIDEGATE_FALLBACK_STEP_DENY;
  step->val.deny = (tidegate_denial_t){.status = 404, .code = tidegate_text("MANIFEST_UNKNOWN"), .message = message};
}

// What a look-up brought: the length of it, or the error by its name.
static tidegate_string_t found(bool is_ok, tidegate_list_u8_t *bytes, tidegate_registry_error_t *error) {
  static const char *const ERRORS[] = {"not-found", "denied", "too-large", "budget-spent"};
  if (is_ok) {
    tidegate_string_t text = tidegate_text("%u", (unsigned)bytes->len);
    tidegate_list_u8_free(bytes);
    return text;
  }
  if (error->tag == TIDEGATE_REGISTRY_ERROR_UNAVAILABLE) return error->val.unavailable;
  return tidegate_text("%s", ERRORS[error->tag]);
}

static tidegate_string_t manifest(const char *reference) {
  tidegate_string_t of = word(reference);
  tidegate_list_u8_t bytes;
  tidegate_registry_error_t error;
  bool is_ok = tidegate_registry_manifest(&of, &bytes, &error);
  return found(is_ok, &bytes, &error);
}

static tidegate_string_t label(const char *key) {
  tidegate_string_t of = word(key), error;
  tidegate_option_string_t value;
  if (!tidegate_image_label(&of, &value, &error)) tidegate_fail("no label: %.*s", TEXT(error));
  return or_none(value.is_some, value.val);
}

static tidegate_string_t tell_referrers(tidegate_string_t *digest) {
  tidegate_string_t kind = word("application/vnd.example.sbom"), text = {NULL, 0};
  tidegate_registry_list_descriptor_t list;
  tidegate_registry_error_t error;
  if (!tidegate_registry_referrers(digest, &kind, &list, &error)) tidegate_fail("no referrers: error %d", error.tag);
  for (size_t i = 0; i < list.len; i++) {
    tidegate_descriptor_t *found = &list.ptr[i];
    add(&text, "+", tidegate_text("%.*s+%.*s+%u", TEXT(found->digest), TEXT(found->artifact_type.val),
                                  (unsigned)found->size));
  }
  tidegate_registry_list_descriptor_free(&list);
  return text;
}

// Of the layers their digests, and the length of the last one.
static void tell_layers(tidegate_string_t *digests, tidegate_string_t *last) {
  tidegate_image_list_descriptor_t layers;
  tidegate_image_layers(&layers);
  *digests = (tidegate_string_t){NULL, 0};
  for (size_t i = 0; i < layers.len; i++) add(digests, "+", copy(layers.ptr[i].digest));
  tidegate_list_u8_t bytes;
  tidegate_registry_error_t error;
  bool is_ok = tidegate_registry_blob(&layers.ptr[layers.len - 1].digest, &bytes, &error);
  *last = found(is_ok, &bytes, &error);
  tidegate_image_list_descriptor_free(&layers);
}

void tidegate_inspection_inspect(tidegate_request_t *request, tidegate_inspection_finding_t *finding) {
  (void)request;
  finding->tag = TIDEGATE_INSPECTION_FINDING_RELEASE;
  tidegate_string_t key = word("org.example.hold"), hold, value;
  if (!tidegate_image_annotation(&key, &hold)) return;
  uint32_t seconds = 0;
  for (size_t i = 0; i < hold.len; i++) seconds = 10 * seconds + (hold.ptr[i] - '0');
  tidegate_string_free(&hold);
  tidegate_image_descriptor_t target, subject;
  if (!tidegate_image_target(&target)) tidegate_fail("there is no manifest");
  tidegate_string_t text = tidegate_text("target=%.*s+%.*s+%u", TEXT(target.digest), TEXT(target.media_type),
                                         (unsigned)target.size);
  tidegate_list_u8_t bytes;
  tidegate_image_raw(&bytes);
  add(&text, " raw=", tidegate_text("%u", (unsigned)bytes.len));
  tidegate_list_u8_free(&bytes);
  tidegate_string_t digests, last;
  tell_layers(&digests, &last);
  add(&text, " layers=", digests);
  tidegate_image_list_pair_t annotations;
  tidegate_image_annotations(&annotations);
  add(&text, " annotations=", pairs(annotations.ptr, annotations.len));
  tidegate_image_list_pair_free(&annotations);
  bool is_some = tidegate_image_artifact_type(&value);
  add(&text, " artifact=", or_none(is_some, value));
  is_some = tidegate_image_subject(&subject);
  add(&text, " subject=", is_some ? copy(subject.digest) : tidegate_text("none"));
  if (is_some) tidegate_image_descriptor_free(&subject);
  add(&text, " label=", label("name"));
  add(&text, " unlabelled=", label("nothing"));
  if (!tidegate_image_config(&bytes, &value)) tidegate_fail("no configuration: %.*s", TEXT(value));
  add(&text, " config=", tidegate_text("%u", (unsigned)bytes.len));
  tidegate_list_u8_free(&bytes);
  tidegate_list_string_t parents;
  tidegate_image_parents(&parents);
  add(&text, " parents=", joined(&parents));
  add(&text, " other=", manifest("other"));
  add(&text, " gone=", manifest("gone"));
  add(&text, " bad=", manifest("../x"));
  add(&text, " referrers=", tell_referrers(&target.digest));
  add(&text, " blob=", last);
  tidegate_image_descriptor_free(&target);
  finding->tag = TIDEGATE_INSPECTION_FINDING_HOLD;
  finding->val.hold = (tidegate_inspection_hold_t){seconds, text};
}

void tidegate_freshness_judge(tidegate_request_t *request, tidegate_freshness_cached_tag_t *cached,
                              tidegate_freshness_rule_t *rule) {
  tidegate_string_t name = tidegate_name(request);
  tidegate_string_t line = tidegate_text("%.*s: the cache holds ", TEXT(name));
  add(&line, "", cached == NULL
                     ? tidegate_text("nothing")
                     : tidegate_text("%.*s for %u s", TEXT(cached->digest), (unsigned)cached->age_secs));
  tidegate_log_write(TIDEGATE_LOG_LEVEL_INFO, &line);
  tidegate_string_free(&line);
  tidegate_string_free(&name);
  const tidegate_string_t *tag = tidegate_tag(request);
  rule->tag = TIDEGATE_FRESHNESS_RULE_PASS;
  if (tag != NULL && tidegate_is(*tag, "moving")) rule->tag = TIDEGATE_FRESHNESS_RULE_REVALIDATE;
  if (tag != NULL && tidegate_is(*tag, "pinned")) {
    rule->tag = TIDEGATE_FRESHNESS_RULE_PIN;
    rule->val.pin = accepted("pin");
  }
}
