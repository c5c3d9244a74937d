//! The allocator: it starts in a static arena, so that a fresh instance makes no memory growth, which would cost a
//! system call in the host; what does not fit grows the memory. Freed memory is used again, as a warm instance
//! serves many thousands of calls.

#![allow(unsafe_code)]

use std::alloc::Layout;
use std::arch::wasm32::memory_grow;
use std::mem::MaybeUninit;
use std::ptr::NonNull;

use talc::base::{Talc, binning::Binning};
use talc::cell::TalcSyncCell;
use talc::source::Source;
use talc::wasm::WasmBinning;

/// With a stack of 64 KiB and code data below 64 KiB the whole memory stays at 256 KiB, which the host resets without
/// a system call. Units: bytes.
const ARENA_BYTES: usize = 128 * 1024;
const PAGE_BYTES: usize = 64 * 1024;
/// The least that a growth brings: each is a system call in the host. Units: pages.
const GROW_PAGES: usize = 4;

static mut ARENA: [MaybeUninit<u8>; ARENA_BYTES] = [MaybeUninit::uninit(); ARENA_BYTES];

#[global_allocator]
static ALLOCATOR: TalcSyncCell<ArenaThenGrow, WasmBinning> = TalcSyncCell::new_wasm(ArenaThenGrow::Untouched);

/// Where the allocator gets memory from.
#[derive(Debug)]
enum ArenaThenGrow {
    Untouched,
    Arena,
    /// The end of the heap that was grown last.
    Grown(NonNull<u8>),
}

// SAFETY: nothing in here allocates.
unsafe impl Source for ArenaThenGrow {
    fn acquire<B: Binning>(talc: &mut Talc<Self, B>, layout: Layout) -> Result<(), ()> {
        if let Self::Untouched = talc.source {
            talc.source = Self::Arena;
            // SAFETY: nobody else names `ARENA`, and this arm runs once.
            return unsafe { talc.claim((&raw mut ARENA).cast(), ARENA_BYTES) }.map(|_| ()).ok_or(());
        }
        // Room for the allocator's own words beside the block: a page is far more than they take.
        let bytes = layout.size().checked_add(layout.align()).and_then(|bytes| bytes.checked_add(PAGE_BYTES));
        let pages = bytes.ok_or(())?.div_ceil(PAGE_BYTES).max(GROW_PAGES);
        let before = memory_grow::<0>(pages);
        if before == usize::MAX {
            return Err(());
        }
        let base = (before * PAGE_BYTES) as *mut u8;
        // The last page of a 4 GiB memory ends where an address cannot point.
        let size = (pages * PAGE_BYTES).min(usize::MAX - base as usize);
        let end = match talc.source {
            // SAFETY: the pages between both ends were just made, and belong to nobody else.
            Self::Grown(end) if end.as_ptr() == base => unsafe { talc.extend(end, base.wrapping_add(size)) },
            // SAFETY: as above.
            _ => unsafe { talc.claim(base, size) }.ok_or(())?,
        };
        talc.source = Self::Grown(end);
        Ok(())
    }
}
