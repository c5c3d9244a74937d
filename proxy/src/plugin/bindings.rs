//! What wasmtime makes of the WIT. Private: nothing outside this folder sees these types.
#![allow(missing_docs, clippy::pedantic)]

wasmtime::component::bindgen!({
    path: "../wit",
    world: "full-plugin",
    imports: {
        // These look into the cache, or ask a registry.
        "tidegate:policy/call.cache": async,
        "tidegate:policy/call.attribute": async,
        "tidegate:policy/image.config": async,
        "tidegate:policy/image.label": async,
        "tidegate:policy/image.parents": async,
        "tidegate:policy/registry": async,
    },
    exports: { default: async },
});

pub(super) use self::exports::tidegate::policy::{
    admission, fallback, freshness, hints, inspection, lifecycle, routing,
};
pub(super) use self::tidegate::policy::{call, clock, config, image, log, metrics, registry, state, types};
