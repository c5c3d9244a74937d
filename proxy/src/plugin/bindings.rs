//! What wasmtime makes of the WIT. Private: nothing outside this folder sees these types.
#![allow(missing_docs, clippy::pedantic)]

wasmtime::component::bindgen!({
    path: "../wit",
    world: "full-plugin",
    imports: {
        // These look into the cache.
        "tidegate:policy/call.cache": async,
        "tidegate:policy/call.attribute": async,
    },
    exports: { default: async },
});

pub(super) use self::exports::tidegate::policy::{admission, fallback, lifecycle, routing};
pub(super) use self::tidegate::policy::{call, clock, config, log, state, types};
