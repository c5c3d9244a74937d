//! From a core module to a plugin: which hooks it exports, and the type that says so.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, bail};
use wasmparser::{Parser, Payload};
use wit_component::{StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

/// The package of the interface.
const POLICY: &str = "tidegate:policy";
/// The package of the world that is composed for one plugin, and the world.
pub(super) const WORLD: &str = "plugin";

/// The interface as a project has it.
pub(super) struct Interface {
    /// With its version: `0.1.0`.
    version: String,
}

impl Interface {
    /// Reads the folder `wit` of a project.
    ///
    /// # Errors
    /// It is not there, does not parse, or is another interface.
    pub fn open(wit: &Path) -> anyhow::Result<Self> {
        let mut resolve = Resolve::default();
        let (package, _) = resolve.push_dir(wit).with_context(|| {
            format!("{} does not hold the interface: `tidegate plugin new` writes it", wit.display())
        })?;
        let name = &resolve.packages[package].name;
        let version = name.version.as_ref().filter(|_| format!("{}:{}", name.namespace, name.name) == POLICY);
        let version = version.with_context(|| format!("{} holds {name}, not {POLICY}", wit.display()))?;
        Ok(Self { version: version.to_string() })
    }

    /// A world of some hooks, in a package of its own.
    pub fn world<'a>(&self, hooks: impl IntoIterator<Item = &'a str>) -> String {
        let version = &self.version;
        let mut text =
            format!("package tidegate:plugin;\n\nworld {WORLD} {{\n  include {POLICY}/host-api@{version};\n");
        for hook in hooks {
            let _ = writeln!(text, "  export {POLICY}/{hook}@{version};");
        }
        text + "}\n"
    }

    /// Gives a core module the type of a component, by the hooks that it exports.
    ///
    /// # Errors
    /// It exports none, or what it exports is not as the interface has it.
    pub fn embed(&self, wit: &Path, module: &Path) -> anyhow::Result<Vec<u8>> {
        let mut wasm = fs::read(module)?;
        let hooks = self.hooks(&wasm)?;
        if hooks.is_empty() {
            bail!("the plugin exports no hook of {POLICY}@{}", self.version);
        }
        let mut resolve = Resolve::default();
        resolve.push_dir(wit)?;
        let package = resolve.push_str("plugin.wit", &self.world(hooks.iter().map(String::as_str)))?;
        let world = resolve.select_world(&[package], Some(WORLD))?;
        embed_component_metadata(&mut wasm, &resolve, world, StringEncoding::UTF8)?;
        Ok(wasm)
    }

    /// The hooks whose functions a core module exports: `tidegate:policy/admission@0.1.0#admit` is one of `admission`.
    fn hooks(&self, wasm: &[u8]) -> anyhow::Result<Vec<String>> {
        let (prefix, suffix) = (format!("{POLICY}/"), format!("@{}", self.version));
        let mut hooks: Vec<String> = Vec::new();
        for payload in Parser::new(0).parse_all(wasm) {
            let Payload::ExportSection(exports) = payload? else { continue };
            for export in exports {
                let export = export?;
                let interface = export.name.split_once('#').map(|(interface, _)| interface);
                let hook = interface.and_then(|name| name.strip_prefix(&prefix)?.strip_suffix(&suffix));
                if let Some(hook) = hook
                    && !hooks.iter().any(|known| known == hook)
                {
                    hooks.push(hook.to_owned());
                }
            }
        }
        Ok(hooks)
    }
}
