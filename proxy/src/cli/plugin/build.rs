//! `tidegate plugin build DIR`: by the tool chain of the project's language, into DIR/NAME.wasm.

use std::ffi::OsStr;
use std::fmt::Write;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::Context;
use tempfile::TempDir;

use super::carried;
use super::language::Language;
use super::module::{Interface, WORLD};
use crate::cli::EXIT_BAD_INPUT;

/// A hook, and its method in the languages whose entry is written here.
struct Hook {
    interface: &'static str,
    python: &'static str,
    js: &'static str,
}

const HOOKS: [Hook; 7] = [
    Hook { interface: "lifecycle", python: "check", js: "check" },
    Hook { interface: "hints", python: "depends_on", js: "dependsOn" },
    Hook { interface: "admission", python: "admit", js: "admit" },
    Hook { interface: "routing", python: "route", js: "route" },
    Hook { interface: "fallback", python: "on_failure", js: "onFailure" },
    Hook { interface: "inspection", python: "inspect", js: "inspect" },
    Hook { interface: "freshness", python: "judge", js: "judge" },
];

/// Why there is no plugin.
enum Failure {
    /// What the author has to mend before anything is built: in words.
    Given(String),
    /// A tool has said why.
    Told,
    Other(anyhow::Error),
}

impl From<anyhow::Error> for Failure {
    fn from(err: anyhow::Error) -> Self {
        Self::Other(err)
    }
}

impl From<io::Error> for Failure {
    fn from(err: io::Error) -> Self {
        Self::Other(err.into())
    }
}

pub(super) fn build(dir: &Path) -> anyhow::Result<ExitCode> {
    match Project::open(dir).and_then(|project| project.build().map(|()| project.out)) {
        Ok(out) => {
            let bytes = fs::metadata(&out)?.len();
            println!("{}: {bytes} bytes", out.display());
            Ok(ExitCode::SUCCESS)
        }
        Err(Failure::Given(reason)) => {
            eprintln!("tidegate: {reason}");
            Ok(ExitCode::from(EXIT_BAD_INPUT))
        }
        Err(Failure::Told) => Ok(ExitCode::FAILURE),
        Err(Failure::Other(err)) => Err(err),
    }
}

/// A folder with a plugin in it.
struct Project {
    dir: PathBuf,
    language: Language,
    /// What is built.
    out: PathBuf,
    /// What lies there only while it is built.
    scratch: TempDir,
}

impl Project {
    fn open(dir: &Path) -> Result<Self, Failure> {
        let dir = dir.canonicalize().map_err(|err| Failure::Given(format!("{}: {err}", dir.display())))?;
        let language = Language::of(&dir).ok_or_else(|| {
            Failure::Given(format!(
                "{}: no plugin is here: it holds none of Cargo.toml, plugin.py, plugin.js, go.mod and plugin.c; \
                 `tidegate plugin new PATH --lang LANGUAGE` writes one",
                dir.display()
            ))
        })?;
        let name = dir.file_name().unwrap_or(OsStr::new("plugin")).to_string_lossy();
        let out = dir.join(format!("{name}.wasm"));
        Ok(Self { out, language, scratch: tempfile::tempdir()?, dir })
    }

    fn build(&self) -> Result<(), Failure> {
        let made = self.scratch.path().join("made.wasm");
        match self.language {
            Language::Rust => self.rust(&made),
            Language::Python => self.python(&made),
            Language::Js => self.js(&made),
            Language::Go => self.go(&made),
            Language::C => self.c(&made),
        }?;
        // All at once: the folder may be one that a proxy looks at.
        let staged = self.out.with_extension("wasm.tmp");
        fs::copy(&made, &staged)?;
        Ok(fs::rename(staged, &self.out)?)
    }

    /// By the script that builds the plugins of Tidegate's own repository.
    fn rust(&self, made: &Path) -> Result<(), Failure> {
        let mut bash = self.tool("bash");
        bash.args(["-c", carried::BUILD, "tidegate plugin build", "--into"]).arg(made).arg(&self.dir);
        self.run(&mut bash)
    }

    fn python(&self, made: &Path) -> Result<(), Failure> {
        let source = self.dir.join(self.language.source());
        let hooks = self.hooks("python3", &self.dir.join("tidegate/hooks.py"), &source)?;
        let wit = self.compose(&hooks)?;
        let mut entry = "from plugin import Plugin\nfrom tidegate import _call\n\n_plugin = Plugin()\n".to_owned();
        for Hook { interface, python, .. } in &hooks {
            let class = interface[..1].to_uppercase() + &interface[1..];
            let _ = write!(
                entry,
                "\n\nclass {class}:\n    def {python}(self, *given):\n        \
                 return _call(\"{interface}\", _plugin.{python}, *given)\n"
            );
        }
        fs::write(self.scratch.path().join("entry.py"), entry)?;
        let mut tool = self.tool("componentize-py");
        tool.arg("--quiet").arg("--wit-path").arg(wit).args(["--world", WORLD, "componentize", "entry"]);
        tool.arg("--python-path").arg(self.scratch.path()).arg("--python-path").arg(&self.dir);
        self.run(tool.arg("--output").arg(made))
    }

    fn js(&self, made: &Path) -> Result<(), Failure> {
        let source = self.dir.join(self.language.source());
        let hooks = self.hooks("node", &self.dir.join("tidegate/hooks.mjs"), &source)?;
        let wit = self.compose(&hooks)?;
        let mut entry = "import plugin from \"../plugin.js\";\nimport { hook } from \"./entry.js\";\n".to_owned();
        for Hook { interface, js, .. } in &hooks {
            let _ = writeln!(entry, "export const {interface} = {{ {js}: hook(plugin, \"{js}\") }};");
        }
        // It must lie under the root of the imports.
        let path = self.dir.join("tidegate/.built.js");
        fs::write(&path, entry)?;
        let mut tool = self.tool("componentize-qjs");
        tool.arg("--wit").arg(wit).args(["--world", WORLD, "--sync", "--js"]).arg(&path);
        tool.arg("--module-root").arg(&self.dir).arg("--output").arg(made).stdout(Stdio::null());
        let done = self.run(&mut tool);
        fs::remove_file(path)?;
        done
    }

    fn go(&self, made: &Path) -> Result<(), Failure> {
        let core = self.scratch.path().join("core.wasm");
        let mut tool = self.tool("go");
        tool.env("GOOS", "wasip1").env("GOARCH", "wasm").args(["build", "-trimpath", "-buildmode=c-shared"]);
        // The layer's allocator is called before Go's own is there: it asks the runtime for memory by a name of its.
        tool.args(["-ldflags", "-checklinkname=0 -s -w", "-o"]).arg(&core).arg(".");
        self.run(&mut tool)?;
        self.embed(&core, made)
    }

    fn c(&self, made: &Path) -> Result<(), Failure> {
        let core = self.scratch.path().join("core.wasm");
        let mut tool = self.tool("clang");
        tool.args(["--target=wasm32-wasi", "-mexec-model=reactor", "-Oz", "-s", "-Wall", "-Wl,--stack-first"]);
        tool.args(["-Wl,-zstack-size=65536", "-I", "tidegate", "-o"]).arg(&core).args(self.sources("c")?);
        tool.args(["tidegate/tidegate.c", "tidegate/bindings.c"]);
        self.run(&mut tool)?;
        self.embed(&core, made)
    }

    /// The files of the project's own folder that end so.
    fn sources(&self, extension: &str) -> Result<Vec<PathBuf>, Failure> {
        let paths = fs::read_dir(&self.dir)?.map(|entry| entry.map(|entry| entry.path()));
        let mut paths = paths.collect::<Result<Vec<_>, _>>()?;
        paths.retain(|path| path.extension() == Some(OsStr::new(extension)));
        paths.sort();
        Ok(paths)
    }

    /// The type for a module that has none yet.
    fn embed(&self, core: &Path, made: &Path) -> Result<(), Failure> {
        let wit = self.dir.join("wit");
        let wasm = Interface::open(&wit)?.embed(&wit, core)?;
        Ok(fs::write(made, wasm)?)
    }

    /// The hooks that a source has, as the layer of its language finds them.
    fn hooks(&self, program: &str, script: &Path, source: &Path) -> Result<Vec<&'static Hook>, Failure> {
        let mut tool = self.tool(program);
        let output = tool.arg(script).arg(source).stderr(Stdio::inherit()).output();
        let output = output.map_err(|err| self.cannot_run(&tool, err))?;
        if !output.status.success() {
            return Err(Failure::Told);
        }
        let found = String::from_utf8_lossy(&output.stdout);
        Ok(HOOKS.iter().filter(|hook| found.lines().any(|line| line == hook.interface)).collect())
    }

    /// A folder with the interface, and a world of these hooks beside it.
    fn compose(&self, hooks: &[&Hook]) -> Result<PathBuf, Failure> {
        let own = self.dir.join("wit");
        let world = Interface::open(&own)?.world(hooks.iter().map(|hook| hook.interface));
        let wit = self.scratch.path().join("wit");
        let policy = wit.join("deps/policy");
        fs::create_dir_all(&policy)?;
        fs::write(wit.join("plugin.wit"), world)?;
        for entry in fs::read_dir(&own)? {
            let path = entry?.path();
            if path.extension() == Some(OsStr::new("wit")) {
                fs::copy(&path, policy.join(path.file_name().context("a file has a name")?))?;
            }
        }
        Ok(wit)
    }

    fn tool(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.dir);
        command
    }

    /// Runs a tool; what it says is shown as it is.
    fn run(&self, command: &mut Command) -> Result<(), Failure> {
        let status = command.status().map_err(|err| self.cannot_run(command, err))?;
        if status.success() { Ok(()) } else { Err(Failure::Told) }
    }

    fn cannot_run(&self, command: &Command, err: io::Error) -> Failure {
        let program = command.get_program().to_string_lossy();
        if err.kind() == io::ErrorKind::NotFound {
            let (title, tools) = (self.language.title(), self.language.tools());
            return Failure::Given(format!(
                "there is no {program}, which builds plugins in {title}. Type this:\n  {tools}"
            ));
        }
        Failure::Other(anyhow::Error::new(err).context(format!("{program} cannot be run")))
    }
}
