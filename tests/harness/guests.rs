//! Plugins made on the spot, in the text format of WebAssembly: the bad ones, and those whose answers bear a number.
//!
//! Each is a few instructions in the canonical ABI. The memory of a guest: results at 0 and 512, texts from 1024 on,
//! what the host passes in from 32 KiB on.

use std::fmt::Write as _;
use std::fs;

use tempfile::TempDir;
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

use crate::program::workspace;

/// How many flat parameters a request makes: action, content, and the addresses and lengths of registry, repository
/// and reference, the last with its case. None of them is looked at.
const REQUEST: usize = 9;
/// How many flat parameters a list makes: its address and its length.
const LIST: usize = 2;

/// A guest that is being put together.
#[derive(Clone, Debug)]
pub struct Guest {
    hooks: Vec<&'static str>,
    body: String,
    texts: usize,
    pages: u32,
    world: String,
    /// A function that only a later interface has.
    later: Option<&'static str>,
}

/// What the body of a hook does.
#[derive(Clone, Copy, Debug)]
pub enum Does<'a> {
    /// Gives case 0 of its result: allow, pass, accepted.
    Nothing,
    /// Gives case 1 of a verdict.
    CachedOnly,
    /// Denies with a message.
    Denies(&'a str),
    /// Denies with a message, followed by the text of the first configuration file.
    DeniesWithConfig(&'a str),
    /// Warns with a text, followed by the text of the first configuration file, and gives case 0.
    Warns(&'a str),
    /// Refuses the configuration with a text.
    Refuses(&'a str),
    /// Never comes back.
    Loops,
    /// Executes `unreachable`.
    Traps,
    /// Asks for all of a 32-bit address space, and traps when it does not get it.
    Grows,
    /// Gives a case that its result does not have.
    Garbles,
    /// Gives a text that lies outside its memory.
    Overreaches,
    /// Runs instructions in the text format, which leave the address of the result on the stack.
    Runs(&'a str),
}

impl Guest {
    /// Exports nothing yet.
    pub fn new() -> Self {
        Self { hooks: Vec::new(), body: String::new(), texts: 1024, pages: 3, world: String::new(), later: None }
    }

    /// With the hook `admission`.
    #[must_use]
    pub fn admits(self, does: Does) -> Self {
        self.hook("admission", "admit", REQUEST, does)
    }

    /// With the hook `routing`.
    #[must_use]
    pub fn routes(self, does: Does) -> Self {
        self.hook("routing", "route", REQUEST + LIST, does)
    }

    /// With the hook `fallback`.
    #[must_use]
    pub fn falls_back(self, does: Does) -> Self {
        self.hook("fallback", "on-failure", REQUEST + LIST + LIST, does)
    }

    /// With the hook `lifecycle`.
    #[must_use]
    pub fn checks(self, does: Does) -> Self {
        self.hook("lifecycle", "check", 0, does)
    }

    /// With a start function that never ends.
    #[must_use]
    pub fn never_starts(mut self) -> Self {
        self.body += "(func $spin (loop $again (br $again))) (start $spin)\n";
        self
    }

    /// With so much memory from the start. Units: pages of 64 KiB.
    #[must_use]
    pub fn pages(mut self, pages: u32) -> Self {
        self.pages = pages;
        self
    }

    /// With an import that no host of this project has.
    #[must_use]
    pub fn wants_the_moon(mut self) -> Self {
        self.world += "import moon: interface { rise: func(); }\n";
        self.body = format!("(import \"moon\" \"rise\" (func $rise))\n{}(func $use (call $rise))\n", self.body);
        self
    }

    /// Built for 0.1.1, in which the interface `call` has a function more; it does not call it.
    #[must_use]
    pub fn knows_later(mut self, function: &'static str) -> Self {
        self.later = Some(function);
        self
    }

    /// The same, and it calls it.
    #[must_use]
    pub fn wants_later(self, function: &'static str) -> Self {
        let import = format!("(import \"tidegate:policy/call@0.1.0\" \"{function}\" (func $later))");
        self.knows_later(function).with(&import).with("(func $use (call $later))")
    }

    /// With more in its module, in the text format.
    #[must_use]
    pub fn with(mut self, more: &str) -> Self {
        self.body += more;
        self.body.push('\n');
        self
    }

    /// As a component.
    pub fn component(&self) -> Vec<u8> {
        let mut encoder = ComponentEncoder::default().validate(true).module(&self.core()).expect("it is a module");
        encoder.encode().unwrap_or_else(|error| panic!("{error:#}: {}", self.text()))
    }

    /// As a core module that carries its component type.
    pub fn core(&self) -> Vec<u8> {
        let version = |text: String| if self.later.is_some() { text.replace("@0.1.0", "@0.1.1") } else { text };
        let text = version(self.text());
        let mut module = wat::parse_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        let mut resolve = Resolve::default();
        match self.later {
            None => resolve.push_dir(workspace().join("wit")).expect("wit/ is right"),
            Some(function) => resolve.push_dir(later(function).path()).expect("wit/ stays right"),
        };
        let exports = self.hooks.iter().fold(String::new(), |mut text, hook| {
            let _ = writeln!(text, "export tidegate:policy/{hook}@0.1.0;");
            text
        });
        let world = format!(
            "package tidegate:guests;\nworld guest {{ include tidegate:policy/host-api@0.1.0;\n{}{exports}}}",
            self.world
        );
        let package = resolve.push_str("guests.wit", &version(world)).expect("the world is right");
        let world = resolve.select_world(&[package], Some("guest")).expect("it was just pushed");
        embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).expect("a module takes a section");
        module
    }

    fn hook(mut self, interface: &'static str, function: &str, parameters: usize, does: Does) -> Self {
        let body = self.instructions(does);
        let parameters = "i32 ".repeat(parameters);
        let _ = writeln!(
            self.body,
            "(func (export \"tidegate:policy/{interface}@0.1.0#{function}\") (param {parameters}) (result i32)\n\
             (global.set $heap (i32.const 32768)) {body})"
        );
        self.hooks.push(interface);
        self
    }

    /// Instructions that leave the address of the result on the stack.
    fn instructions(&mut self, does: Does) -> String {
        let case = |case: u8| format!("(i32.store8 (i32.const 0) (i32.const {case})) (i32.const 0)");
        match does {
            Does::Nothing => case(0),
            Does::CachedOnly => case(1),
            Does::Denies(message) => {
                let (at, len) = self.put(message);
                format!("(call $deny (i32.const {at}) (i32.const {len}))")
            }
            Does::DeniesWithConfig(message) => {
                let (at, len) = self.put(message);
                format!("(call $deny (i32.const {at}) (call $with_config (i32.const {at}) (i32.const {len})))")
            }
            Does::Warns(message) => {
                let (at, len) = self.put(message);
                let warn =
                    format!("(call $warn (i32.const {at}) (call $with_config (i32.const {at}) (i32.const {len})))");
                warn + &case(0)
            }
            Does::Refuses(reason) => {
                let (at, len) = self.put(reason);
                let text = format!(
                    "(i32.store offset=4 (i32.const 0) (i32.const {at})) (i32.store offset=8 (i32.const 0) (i32.const {len}))"
                );
                text + &case(1)
            }
            Does::Loops => "(loop $again (br $again)) (unreachable)".to_owned(),
            Does::Traps => "(unreachable)".to_owned(),
            Does::Grows => {
                let grow = "(if (i32.eq (memory.grow (i32.const 65000)) (i32.const -1)) (then (unreachable)))";
                grow.to_owned() + &case(0)
            }
            Does::Garbles => case(77),
            Does::Runs(instructions) => instructions.to_owned(),
            Does::Overreaches => "(call $deny (i32.const 16) (i32.const 209715200))".to_owned(),
        }
    }

    /// A text in memory, with room for a configuration after it. Gives its address and its length.
    fn put(&mut self, text: &str) -> (usize, usize) {
        let at = self.texts;
        let bytes = text.bytes().fold(String::new(), |mut bytes, byte| {
            let _ = write!(bytes, "\\{byte:02x}");
            bytes
        });
        let _ = writeln!(self.body, "(data (i32.const {at}) \"{bytes}\")");
        self.texts += text.len() + 512;
        (at, text.len())
    }

    fn text(&self) -> String {
        // Imports come before all else.
        let (imports, rest): (Vec<&str>, Vec<&str>) = self.body.lines().partition(|line| line.starts_with("(import"));
        format!(
            r#"(module
            (import "tidegate:policy/config@0.1.0" "files" (func $files (param i32)))
            (import "tidegate:policy/call@0.1.0" "warn" (func $warn (param i32 i32)))
            {imports}
            (memory (export "memory") {pages})
            (global $heap (mut i32) (i32.const 32768))
            (func (export "cabi_realloc") (param $old i32) (param i32) (param i32) (param $size i32) (result i32)
              (local $at i32)
              (local.set $at (i32.and (i32.add (global.get $heap) (i32.const 7)) (i32.const -8)))
              (global.set $heap (i32.add (local.get $at) (local.get $size)))
              (local.get $at))
            (func $deny (param $at i32) (param $len i32) (result i32)
              (i32.store8 (i32.const 0) (i32.const 2))
              (i32.store16 (i32.const 4) (i32.const 403))
              (i32.store (i32.const 8) (i32.const 800))
              (i32.store (i32.const 12) (i32.const 6))
              (i32.store (i32.const 16) (local.get $at))
              (i32.store (i32.const 20) (local.get $len))
              (i32.store8 (i32.const 24) (i32.const 0))
              (i32.const 0))
            (func $with_config (param $at i32) (param $len i32) (result i32)
              (local $file i32)
              (call $files (i32.const 512))
              (if (i32.eqz (i32.load (i32.const 516))) (then (return (local.get $len))))
              (local.set $file (i32.load (i32.const 512)))
              (memory.copy
                (i32.add (local.get $at) (local.get $len))
                (i32.load offset=8 (local.get $file))
                (i32.load offset=12 (local.get $file)))
              (i32.add (local.get $len) (i32.load offset=12 (local.get $file))))
            (data (i32.const 800) "DENIED")
            {rest})"#,
            imports = imports.join("\n"),
            rest = rest.join("\n"),
            pages = self.pages,
        )
    }
}

/// The interface as 0.1.1, with a function more in `call`.
fn later(function: &str) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for entry in fs::read_dir(workspace().join("wit")).expect("wit/ is there").flatten() {
        let mut text = fs::read_to_string(entry.path()).expect("it is text").replace("@0.1.0", "@0.1.1");
        if entry.file_name() == "call.wit" {
            let end = text.rfind('}').expect("it ends with a brace");
            text.insert_str(end, &format!("  {function}: func();\n"));
        }
        fs::write(folder.path().join(entry.file_name()), text).expect("it can be written");
    }
    folder
}

impl Default for Guest {
    fn default() -> Self {
        Self::new()
    }
}

/// Denies everything with a message.
pub fn denier(message: &str) -> Vec<u8> {
    Guest::new().admits(Does::Denies(message)).component()
}

/// Denies everything with `wasm N, config TEXT`: which program decided, with which configuration.
pub fn stamped(number: usize) -> Vec<u8> {
    Guest::new().admits(Does::DeniesWithConfig(&format!("wasm {number}, config "))).component()
}

/// Allows everything, and warns with `HOOK: wasm N, config TEXT` in both of its hooks.
pub fn witness(number: usize) -> Vec<u8> {
    let text = |hook: &str| format!("{hook}: wasm {number}, config ");
    Guest::new().admits(Does::Warns(&text("admission"))).routes(Does::Warns(&text("routing"))).component()
}

/// Does something in its hook `admission`.
pub fn admission(does: Does) -> Vec<u8> {
    Guest::new().admits(does).component()
}
