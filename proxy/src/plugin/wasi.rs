//! What a guest finds that was built for WASI: a sandbox with nothing in it. No files, no environment, no arguments, no
//! network, an input that has ended; clocks and random numbers work, and what it prints becomes lines of the log.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::AsyncWrite;
use wasmtime::component::{Component, Linker, ResourceTable};
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};

use super::guest::{Guest, LOG_MAX};
use super::hints::Kind;

/// Random bytes that one call of a function may ask for. Units: bytes.
const RANDOM_MAX: u64 = 64 << 10;
/// Handles that a guest may have open at once: streams, timers, things to wait for.
const HANDLES_MAX: usize = 1000;

/// A component that begins with more memory than this brings the runtime of its language along: Python needs 12.3 MiB,
/// while Rust, C and `QuickJS` begin with less than 2. Units: bytes.
const RUNTIME_MIN: u64 = 4 << 20;

/// Whether a component imports anything of WASI.
pub(super) fn is_wanted_by(component: &Component) -> bool {
    let kind = component.component_type();
    kind.imports(component.engine()).any(|(name, _)| name.starts_with("wasi:"))
}

/// Whether a component carries the runtime of its language, even though it imports nothing of WASI.
pub(super) fn brings_runtime(component: &Component) -> bool {
    let needs = component.resources_required().and_then(|needs| needs.max_initial_memory_size);
    needs.is_some_and(|bytes| bytes > RUNTIME_MIN)
}

/// Offers WASI to components that were made for it.
pub(super) fn link(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    wasmtime_wasi::p2::add_to_linker_async(linker)
}

/// The sandbox of one instance.
pub(super) struct Sandbox {
    /// Never locked: only what is reached exclusively is used, but the store's data must be `Sync`, and this is not.
    inside: Mutex<(WasiCtx, ResourceTable)>,
    output: Output,
    errors: Output,
}

impl Sandbox {
    pub fn new() -> Self {
        let (output, errors) = (Output::default(), Output::default());
        let mut context = WasiCtx::builder();
        // Without these a socket could be made, to no end but the file descriptor that it takes.
        context.allow_tcp(false).allow_udp(false).allow_ip_name_lookup(false);
        context.max_random_size(RANDOM_MAX).stdout(output.clone()).stderr(errors.clone());
        let mut handles = ResourceTable::new();
        handles.set_max_capacity(HANDLES_MAX);
        Self { inside: Mutex::new((context.build(), handles)), output, errors }
    }

    /// What was printed since the last time, as lines: to standard output, and to standard error.
    pub fn take_lines(&self) -> [Vec<String>; 2] {
        [&self.output, &self.errors].map(|output| {
            let printed = std::mem::take(&mut *output.lock());
            String::from_utf8_lossy(&printed).lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
        })
    }
}

impl WasiView for Guest {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        // Whatever it is that is used: clocks and random numbers are reached no other way.
        self.uses(Kind::Time, "wasi");
        let sandbox = self.sandbox.as_mut().expect("who was linked with WASI was made with a sandbox");
        let (ctx, table) = sandbox.inside.get_mut().unwrap_or_else(PoisonError::into_inner);
        WasiCtxView { ctx, table }
    }
}

/// What a guest has printed in one call.
#[derive(Clone, Default)]
struct Output(Arc<Mutex<Vec<u8>>>);

impl Output {
    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what the log would take, and one byte more, which tells that there was more.
    fn take(&self, bytes: &[u8]) {
        let mut printed = self.lock();
        let room = (LOG_MAX + 1).saturating_sub(printed.len());
        printed.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
}

impl IsTerminal for Output {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Output {
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }

    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }
}

/// One write may bring so many bytes.
const WRITE_MAX: usize = 64 << 10;

#[wasmtime_wasi::async_trait]
impl Pollable for Output {
    async fn ready(&mut self) {}
}

#[wasmtime_wasi::async_trait]
impl OutputStream for Output {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.take(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(WRITE_MAX)
    }
}

impl AsyncWrite for Output {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        self.take(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
