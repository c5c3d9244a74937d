//! From the bytes of a plugin file to code, compiled in a process of its own: what a hostile or broken file does to a
//! compiler, in time or memory, happens there.

use std::io::{self, Read, Write};
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, nice, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use wasi_preview1_component_adapter_provider::{
    WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME as PREVIEW1, WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER as PREVIEW1_ADAPTER,
};
use wasmtime::Engine as Wasmtime;
use wasmtime::component::Component;

use super::convert::printable;
use super::engine::{self, Engine};

/// The hidden verb under which the program compiles.
pub const VERB: &str = "compile-plugin";
/// And what has it give way to other processes.
const GIVE_WAY: &str = "--give-way";
/// Longest time for the compilation of one plugin: of a processor, and on the wall, where others may go before it. Python
/// takes 12 s where nobody else works.
const COMPILE_CPU: Duration = Duration::from_mins(2);
const COMPILE_WALL: Duration = Duration::from_mins(10);
/// By how much a compilation gives way that nobody waits for: a process of the usual priority is given nine times as much.
const GIVES_WAY: i32 = 10;
/// Address space of the compiling process. Units: bytes.
const COMPILE_MEMORY: u64 = 4 << 30;
/// Largest code that is taken back: an empty file of 64 MiB of functions stays below it. Units: bytes.
const CODE_MAX: u64 = 512 << 20;
/// Bytes of the compiler's complaint that reach the operator.
const REASON_MAX: u64 = 2048;

/// Who waits for a compilation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Awaited {
    /// Somebody who cannot go on without it.
    ByAll,
    /// Nobody: an earlier version decides meanwhile, and pulls go before it.
    ByNobody,
}

/// Takes the code of a plugin file from where it is kept, or compiles it.
///
/// # Errors
/// A text for the operator: what is wrong with the file.
pub(super) async fn compile(engine: &Engine, wasm: &Arc<[u8]>, awaited: Awaited) -> Result<Component, String> {
    check_kind(wasm)?;
    if let Some(cache) = engine.code.clone() {
        let (file, wasmtime) = (wasm.clone(), engine.wasmtime.clone());
        let found = tokio::task::spawn_blocking(move || load(&wasmtime, &cache.get(&file)?).ok()).await;
        if let Ok(Some(component)) = found {
            return Ok(component);
        }
    }
    let code = run(&engine.program, wasm, awaited).await?;
    let (cache, file, wasmtime) = (engine.code.clone(), wasm.clone(), engine.wasmtime.clone());
    // Not on a thread that serves: it takes milliseconds.
    let loaded = tokio::task::spawn_blocking(move || {
        let component = load(&wasmtime, &code)?;
        if let Some(cache) = cache
            && let Err(err) = cache.put(&file, &code)
        {
            tracing::warn!(error = err.to_string(), "compiled code cannot be kept: the next start compiles anew");
        }
        Ok(component)
    });
    loaded.await.map_err(|err| format!("the compiled code cannot be loaded: {err}"))?
}

/// Compiles the bytes of a plugin file in a process of its own.
async fn run(program: &Path, wasm: &[u8], awaited: Awaited) -> Result<Vec<u8>, String> {
    let mut child = Command::new(program)
        .arg(VERB)
        .args((awaited == Awaited::ByNobody).then_some(GIVE_WAY))
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|err| format!("the compiling process cannot be started: {err}"))?;
    let mut stdin = child.stdin.take().expect("it was asked for");
    let stdout = child.stdout.take().expect("it was asked for");
    let mut stderr = child.stderr.take().expect("it was asked for");
    let talk = async {
        let (mut code, mut reason) = (Vec::new(), Vec::new());
        let write = async {
            // A compiler that gives up early closes its end; its reason comes by the other pipe.
            let _ = stdin.write_all(wasm).await;
            drop(stdin);
        };
        let mut stdout = stdout.take(CODE_MAX);
        let read = stdout.read_to_end(&mut code);
        let complain = async {
            let read = (&mut stderr).take(REASON_MAX).read_to_end(&mut reason).await;
            // Who complains at length must come to an end.
            tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await.and(read)
        };
        let ((), read, complain) = tokio::join!(write, read, complain);
        read.and(complain).map(|_| (code, reason))
    };
    let (code, reason) = tokio::time::timeout(COMPILE_WALL, talk)
        .await
        .map_err(|_| format!("compiling takes longer than {} s", COMPILE_WALL.as_secs()))?
        .map_err(|err| format!("the compiling process cannot be read: {err}"))?;
    let status = child.wait().await.map_err(|err| format!("the compiling process is lost: {err}"))?;
    if !status.success() {
        let reason = printable(&String::from_utf8_lossy(&reason));
        return Err(if reason.is_empty() {
            format!("compiling ended with {status}: more time or memory than it may have")
        } else {
            reason
        });
    }
    Ok(code)
}

#[allow(unsafe_code)]
fn load(wasmtime: &Wasmtime, code: &[u8]) -> Result<Component, String> {
    // SAFETY: the bytes are what this very program made: a moment ago in a process that it started itself, over a pipe
    // that nobody else holds; or earlier, and then they come, whole as their checksum says, out of a folder that only
    // this user can enter (`CodeCache`). wasmtime itself refuses those of another version.
    unsafe { Component::deserialize(wasmtime, code) }.map_err(|err| format!("{err:#}"))
}

/// Tells at a look what is no WebAssembly at all.
fn check_kind(wasm: &[u8]) -> Result<(), String> {
    match wasm {
        [] => Err("the file is empty".to_owned()),
        [0, b'a', b's', b'm', 0x0d | 0x01, 0, _, 0, ..] => Ok(()),
        [0, b'a', b's', b'm', ..] => {
            Err("the file is cut short, or of a WebAssembly version that is not known".to_owned())
        }
        _ => Err("the file is no WebAssembly: it does not begin with `\\0asm`".to_owned()),
    }
}

/// The other end: reads a plugin file from standard input, and writes its code to standard output.
///
/// # Errors
/// What is wrong with the file; it belongs on standard error.
pub fn run_compiler(gives_way: bool) -> anyhow::Result<()> {
    if gives_way {
        // Where that cannot be, it is as fast as all others.
        let _ = nice(GIVES_WAY);
    }
    let limit = |bytes| Rlimit { current: Some(bytes), maximum: Some(bytes) };
    setrlimit(Resource::As, limit(COMPILE_MEMORY)).map_err(io::Error::from)?;
    setrlimit(Resource::Cpu, limit(COMPILE_CPU.as_secs())).map_err(io::Error::from)?;
    setrlimit(Resource::Core, limit(0)).map_err(io::Error::from)?;
    let mut wasm = Vec::new();
    io::stdin().lock().read_to_end(&mut wasm)?;
    // A compiler that panics over a file has found it bad; how, is of no use to who wrote the file.
    std::panic::set_hook(Box::new(|_| {}));
    let wasmtime = Wasmtime::new(&engine::config()).map_err(in_words)?;
    if wasm.get(4) == Some(&0x01) {
        let broken = |err| in_words(err).context("this module is broken or cut short");
        wasmtime::Module::validate(&wasmtime, &wasm).map_err(broken)?;
        let encoded = std::panic::catch_unwind(|| encode(&wasm));
        wasm = encoded
            .unwrap_or_else(|_| Err(anyhow::anyhow!("this module is broken or cut short in its component type")))?;
    }
    let code = wasmtime.precompile_component(&wasm).map_err(in_words)?;
    io::stdout().lock().write_all(&code)?;
    Ok(())
}

#[expect(clippy::needless_pass_by_value, reason = "the form that map_err wants")]
fn in_words(err: wasmtime::Error) -> anyhow::Error {
    anyhow::anyhow!("{err:#}")
}

/// Makes a component of a core module that carries the type of one.
fn encode(module: &[u8]) -> anyhow::Result<Vec<u8>> {
    let encoder = wit_component::ComponentEncoder::default().validate(true).module(module);
    // Go speaks the first preview of WASI; the adapter stays out of whoever does not.
    let encoder = encoder.and_then(|encoder| encoder.adapter(PREVIEW1, PREVIEW1_ADAPTER));
    let component = encoder.and_then(|mut encoder| encoder.encode());
    component.map_err(|err| err.context("this core module is no plugin: it must carry a component type (wit-bindgen and `wasm-tools component embed` write one)"))
}
