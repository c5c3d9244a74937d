//! What wit-bindgen makes of `wit/`: the imports once, and each hook by itself, so that a component exports only
//! the hooks that it names. Everything public in here is a detail of `export!`.

#![allow(clippy::all, clippy::pedantic, dead_code, missing_docs, unsafe_code, unused_imports)]

wit_bindgen::generate!({
    path: "../../wit",
    world: "host-api",
    generate_all,
    additional_derives: [PartialEq, Eq],
});

macro_rules! hook {
    ($hook:ident, $world:literal, $export:literal, $module:literal) => {
        pub mod $hook {
            wit_bindgen::generate!({
                path: "../../wit",
                world: $world,
                additional_derives: [PartialEq, Eq],
                pub_export_macro: true,
                export_macro_name: $export,
                default_bindings_module: $module,
                runtime_path: "tidegate_sdk::wit_bindgen::rt",
                with: {
                    "tidegate:policy/types@0.1.0": crate::bindings::tidegate::policy::types,
                    "tidegate:policy/call@0.1.0": crate::bindings::tidegate::policy::call,
                    "tidegate:policy/config@0.1.0": crate::bindings::tidegate::policy::config,
                    "tidegate:policy/log@0.1.0": crate::bindings::tidegate::policy::log,
                    "tidegate:policy/clock@0.1.0": crate::bindings::tidegate::policy::clock,
                    "tidegate:policy/state@0.1.0": crate::bindings::tidegate::policy::state,
                    "tidegate:policy/image@0.1.0": crate::bindings::tidegate::policy::image,
                    "tidegate:policy/registry@0.1.0": crate::bindings::tidegate::policy::registry,
                    "tidegate:policy/metrics@0.1.0": crate::bindings::tidegate::policy::metrics,
                },
            });
        }
    };
}

hook!(lifecycle, "lifecycle-plugin", "export_lifecycle", "tidegate_sdk::bindings::lifecycle");
hook!(hints, "hints-plugin", "export_hints", "tidegate_sdk::bindings::hints");
hook!(admission, "admission-plugin", "export_admission", "tidegate_sdk::bindings::admission");
hook!(routing, "routing-plugin", "export_routing", "tidegate_sdk::bindings::routing");
hook!(fallback, "fallback-plugin", "export_fallback", "tidegate_sdk::bindings::fallback");
hook!(inspection, "inspection-plugin", "export_inspection", "tidegate_sdk::bindings::inspection");
hook!(freshness, "freshness-plugin", "export_freshness", "tidegate_sdk::bindings::freshness");
