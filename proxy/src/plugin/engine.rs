//! The one wasmtime engine: its limits, its clock for deadlines, and how many instances may live.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;
use wasmtime::component::Linker;
use wasmtime::{Config, Engine as Wasmtime, InstanceAllocationStrategy, PoolingAllocationConfig};

use super::code_cache::{self, CodeCache};
use super::guest::{self, Guest, INSTANCES_MAX, PARTS_MAX};
use super::wasi;

/// Instances that may live at once, idle ones included. Each slot reserves address space, not memory.
pub(super) const SLOTS: u32 = 256;
/// Memories, and tables, that belong to each; an instance with more takes several.
pub(super) const PARTS_OF_SLOT: u32 = 2;
/// Largest linear memory that any plugin may be allowed. Units: bytes.
pub(super) const MEMORY_MAX: usize = 64 << 20;
/// How often the epoch advances while a guest runs: the grain of deadlines.
pub(super) const TICK: Duration = Duration::from_millis(1);
/// Pages of an instance that stay with its slot, so that the next one needs no page faults. Units: bytes.
const KEEP_RESIDENT: usize = 256 << 10;

/// Runs plugins.
pub struct Engine {
    pub(super) wasmtime: Wasmtime,
    pub(super) linker: Linker<Guest>,
    /// For components that were built for WASI.
    pub(super) wasi_linker: Linker<Guest>,
    pub(super) slots: Arc<Semaphore>,
    /// The program that compiles in a process of its own: this one.
    pub(super) program: PathBuf,
    /// Where compiled code is kept; none: nowhere.
    pub(super) code: Option<Arc<CodeCache>>,
    ticker: Arc<Ticker>,
}

/// How an engine uses compiled code that is kept.
pub(super) enum Keeping<'a> {
    /// It reads and writes what belongs to a state folder.
    Full(&'a Path),
    /// It only reads it.
    ReadOnly(&'a Path),
    /// It does neither: what a compilation takes is of interest.
    Nothing,
}

impl Engine {
    /// Makes the engine. `program`: this program's executable, which compiles plugins in a process of its own.
    ///
    /// # Errors
    /// When the system does not give the address space.
    pub(super) fn new(program: PathBuf, keeping: &Keeping<'_>) -> wasmtime::Result<Self> {
        let mut pool = PoolingAllocationConfig::new();
        let slots = SLOTS;
        let parts = u32::try_from(PARTS_MAX).expect("a small number");
        let instances = u32::try_from(INSTANCES_MAX).expect("a small number");
        pool.total_component_instances(slots)
            .total_core_instances(slots * instances)
            .total_memories(slots * PARTS_OF_SLOT)
            .total_tables(slots * PARTS_OF_SLOT)
            .total_stacks(slots)
            .max_core_instances_per_component(instances)
            .max_memories_per_component(parts)
            .max_tables_per_component(parts)
            .max_memory_size(MEMORY_MAX)
            .linear_memory_keep_resident(KEEP_RESIDENT)
            .table_keep_resident(KEEP_RESIDENT);
        let mut config = config();
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
        let wasmtime = Wasmtime::new(&config)?;
        let mut linker = Linker::new(&wasmtime);
        guest::link(&mut linker)?;
        let mut wasi_linker = linker.clone();
        wasi::link(&mut wasi_linker)?;
        let code = match keeping {
            Keeping::Nothing => None,
            Keeping::ReadOnly(state_dir) => CodeCache::open_to_read(state_dir, &wasmtime),
            Keeping::Full(state_dir) => CodeCache::open(state_dir, &wasmtime)
                .inspect_err(|reason| {
                    let folder = code_cache::folder(state_dir);
                    tracing::warn!(folder = %folder.display(), reason, "compiled code is not kept: every start compiles anew");
                })
                .ok(),
        };
        let ticker = Ticker::start(wasmtime.clone());
        Ok(Self {
            wasmtime,
            linker,
            wasi_linker,
            slots: Arc::new(Semaphore::new(slots as usize)),
            program,
            code: code.map(Arc::new),
            ticker,
        })
    }

    /// Lets the epoch advance until the guard is dropped.
    pub(super) fn run(&self) -> Running<'_> {
        self.ticker.begin();
        Running(&self.ticker)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.ticker.running.store(ENDED, Ordering::SeqCst);
        self.ticker.thread.unpark();
    }
}

/// What decides over the code that is made: the same for who compiles and who runs.
pub(super) fn config() -> Config {
    let mut config = Config::new();
    config.epoch_interruption(true).concurrency_support(false).wasm_component_model(true);
    config
}

/// In `running`: the engine is gone.
const ENDED: usize = usize::MAX;
/// The ticker rests after so many ticks without a guest.
const TICKS_BEFORE_REST: u32 = 100;

/// A thread of its own that advances the epoch while guests run, and rests while none does.
struct Ticker {
    running: Arc<AtomicUsize>,
    thread: std::thread::Thread,
    resting: Arc<std::sync::atomic::AtomicBool>,
}

impl Ticker {
    fn start(engine: Wasmtime) -> Arc<Self> {
        let running = Arc::new(AtomicUsize::new(0));
        let resting = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let (seen, rests) = (running.clone(), resting.clone());
        let thread = std::thread::Builder::new().name("epoch".to_owned()).spawn(move || {
            let mut idle = 0;
            loop {
                match seen.load(Ordering::SeqCst) {
                    ENDED => return,
                    0 => idle += 1,
                    _ => idle = 0,
                }
                if idle > TICKS_BEFORE_REST {
                    rests.store(true, Ordering::SeqCst);
                    // Looked at once more: who began before it saw the flag did not wake us.
                    if seen.load(Ordering::SeqCst) == 0 {
                        std::thread::park();
                    }
                    rests.store(false, Ordering::SeqCst);
                    idle = 0;
                    continue;
                }
                std::thread::sleep(TICK);
                engine.increment_epoch();
            }
        });
        let thread = thread.expect("a thread can be started").thread().clone();
        Arc::new(Self { running, thread, resting })
    }

    fn begin(&self) {
        self.running.fetch_add(1, Ordering::SeqCst);
        if self.resting.load(Ordering::SeqCst) {
            self.thread.unpark();
        }
    }
}

/// A guest runs.
pub(super) struct Running<'a>(&'a Ticker);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}
