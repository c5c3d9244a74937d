//! Plugins as authors make them: written by `tidegate plugin new`, changed, built by `tidegate plugin build`, once a run
//! for each language.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tempfile::TempDir;

use crate::process::{run, run_within};
use crate::program::{BUILD, tidegate, workspace};
use crate::site::Site;

/// What the plugin of each language says when it is asked about `library/boom`.
pub const BOOM: &str = "this plugin cannot take a boom";

/// What is done to a project before it is built, as an author would who makes the plugin fail over one repository.
struct Change {
    language: &'static str,
    source: &'static str,
    /// What is put into the source, and after what.
    put: &'static [(&'static str, &'static str)],
}

const CHANGES: [Change; 5] = [
    Change {
        language: "rust",
        source: "src/lib.rs",
        put: &[(
            "-> Verdict {\n",
            "        assert_ne!(request.repository, \"library/boom\", \"this plugin cannot take a boom\");\n",
        )],
    },
    Change {
        language: "python",
        source: "plugin.py",
        put: &[(
            "def admit(self, request):\n",
            "        if request.repository == \"library/boom\":\n            \
             raise ValueError(\"this plugin cannot take a boom\")\n",
        )],
    },
    Change {
        language: "js",
        source: "plugin.js",
        put: &[(
            "admit(request) {\n",
            "    if (request.repository === \"library/boom\") throw new Error(\"this plugin cannot take a boom\");\n",
        )],
    },
    Change {
        language: "go",
        source: "plugin.go",
        put: &[
            ("import (\n", "\t\"errors\"\n"),
            (
                "(admission.Verdict, error) {\n",
                "\tif request.Repository == \"library/boom\" {\n\t\treturn admission.Allow, \
                 errors.New(\"this plugin cannot take a boom\")\n\t}\n",
            ),
        ],
    },
    Change {
        language: "c",
        source: "plugin.c",
        put: &[(
            "VERDICT_ALLOW;\n",
            "  if (tidegate_is(request->repository, \"library/boom\")) \
             tidegate_fail(\"this plugin cannot take a %s\", \"boom\");\n",
        )],
    },
];

/// A project that was built.
#[derive(Debug)]
pub struct Authored {
    /// The plugin.
    pub wasm: Vec<u8>,
    project: PathBuf,
    folder: TempDir,
}

impl Authored {
    /// Runs a verb about the plugin, in its project.
    pub fn plugin(&self, verb: &[&str]) -> Output {
        let mut command = Command::new(tidegate());
        run(command.arg("plugin").args(verb).current_dir(&self.project).env("XDG_STATE_HOME", self.folder.path()))
    }

    /// Gives a site, whose proxy is not started yet, the code that the verbs have compiled: as an author's own proxy
    /// would find it.
    pub fn keep_compiled(&self, site: &Site) {
        let state = site.path("state");
        fs::create_dir(&state).expect("a new folder");
        let copied = run(Command::new("cp").arg("-a").arg(self.folder.path().join("tidegate/compiled")).arg(state));
        assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
    }
}

/// The plugin `no-latest` in a language.
pub fn no_latest(language: &'static str) -> Arc<Authored> {
    once("no-latest", language, |project| {
        let change = CHANGES.iter().find(|change| change.language == language).expect("a language");
        let path = project.join(change.source);
        let mut text = fs::read_to_string(&path).expect("the project has its source");
        for (after, what) in change.put {
            let at = text.find(after).unwrap_or_else(|| panic!("no {after:?} in {text}")) + after.len();
            text.insert_str(at, what);
        }
        fs::write(&path, text).expect("it can be changed");
    })
}

/// The plugin `all-hooks` in a language: its source takes the place of the one that a project begins with.
pub fn all_hooks(language: &'static str) -> Arc<Authored> {
    once("all-hooks", language, |project| {
        let change = CHANGES.iter().find(|change| change.language == language).expect("a language");
        let source = workspace().join("tests/guests/all-hooks").join(change.source);
        fs::copy(source, project.join(change.source)).expect("the language has its source");
    })
}

/// Writes a project into a folder. Gives the folder that it is to be built in.
pub fn write(language: &str, folder: &TempDir) -> PathBuf {
    write_named("no-latest", language, folder)
}

/// The verb, with the tools where the tests find them. In Rust, what is built of Rust's own library is that of the
/// plugins of this repository.
pub fn build_command(project: &Path) -> Command {
    let mut command = Command::new(tidegate());
    command.args(["plugin", "build"]).arg(project).env("CARGO_TARGET_DIR", workspace().join("plugins/target"));
    command
}

fn write_named(name: &str, language: &str, folder: &TempDir) -> PathBuf {
    let project = folder.path().join(name);
    let output = run(Command::new(tidegate()).args(["plugin", "new", "--lang", language]).arg(&project));
    assert!(output.status.success(), "{language}: {}", String::from_utf8_lossy(&output.stderr));
    project
}

/// A project that is changed and built when it is first asked for.
fn once(name: &'static str, language: &'static str, change: impl FnOnce(&Path)) -> Arc<Authored> {
    type Built = Arc<OnceLock<Arc<Authored>>>;
    static BUILT: Mutex<BTreeMap<(&str, &str), Built>> = Mutex::new(BTreeMap::new());
    let mut all = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    let authored = all.entry((name, language)).or_default().clone();
    drop(all);
    let build = || {
        let folder = tempfile::tempdir().expect("a folder");
        let project = write_named(name, language, &folder);
        change(&project);
        let output = run_within(BUILD, &mut build_command(&project));
        assert!(output.status.success(), "{language}: {}", String::from_utf8_lossy(&output.stderr));
        let wasm = fs::read(project.join(format!("{name}.wasm"))).expect("it is built");
        Arc::new(Authored { wasm, project, folder })
    };
    authored.get_or_init(build).clone()
}
