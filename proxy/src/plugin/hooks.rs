//! The hooks of a component: which of them it exports, and whether they fit the interface.

use wasmtime::component::{Component, InstancePre};

use super::bindings::{admission, fallback, freshness, hints, inspection, lifecycle, routing};
use super::guest::Guest;

/// The hooks that a component exports.
pub(super) struct Hooks {
    /// Version of the interface that it was built for.
    pub interface: String,
    pub lifecycle: Option<lifecycle::GuestIndices>,
    pub hints: Option<hints::GuestIndices>,
    pub admission: Option<admission::GuestIndices>,
    pub routing: Option<routing::GuestIndices>,
    pub fallback: Option<fallback::GuestIndices>,
    pub inspection: Option<inspection::GuestIndices>,
    pub freshness: Option<freshness::GuestIndices>,
}

impl Hooks {
    /// Finds the hooks among the exports of a component. One that has a hook's name but not its functions, and one
    /// that has no hook at all, are refused.
    pub fn find(component: &Component, pre: &InstancePre<Guest>) -> Result<Self, String> {
        let engine = component.engine();
        let kind = component.component_type();
        let exports: Vec<String> = kind.exports(engine).map(|(name, _)| name.to_owned()).collect();
        // Of any 0.1: what it calls is there, or it would not have been linked.
        let has = |hook: &str| exports.iter().any(|export| export.starts_with(&format!("tidegate:policy/{hook}@0.1.")));
        let wrong = |hook: &str, err: wasmtime::Error| format!("its {hook} hook does not fit the interface: {err:#}");
        let interface = exports.iter().find_map(|export| export.strip_prefix("tidegate:policy/")?.split_once('@'));
        let hooks = Self {
            interface: interface.map(|(_, version)| version.to_owned()).unwrap_or_default(),
            lifecycle: has("lifecycle")
                .then(|| lifecycle::GuestIndices::new(pre))
                .transpose()
                .map_err(|err| wrong("lifecycle", err))?,
            hints: has("hints")
                .then(|| hints::GuestIndices::new(pre))
                .transpose()
                .map_err(|err| wrong("hints", err))?,
            admission: has("admission")
                .then(|| admission::GuestIndices::new(pre))
                .transpose()
                .map_err(|err| wrong("admission", err))?,
            routing: has("routing")
                .then(|| routing::GuestIndices::new(pre))
                .transpose()
                .map_err(|err| wrong("routing", err))?,
            fallback: has("fallback")
                .then(|| fallback::GuestIndices::new(pre))
                .transpose()
                .map_err(|err| wrong("fallback", err))?,
            inspection: has("inspection")
                .then(|| inspection::GuestIndices::new(pre))
                .transpose()
                .map_err(|err| wrong("inspection", err))?,
            freshness: has("freshness")
                .then(|| freshness::GuestIndices::new(pre))
                .transpose()
                .map_err(|err| wrong("freshness", err))?,
        };
        if hooks.names().is_empty() {
            let listed = if exports.is_empty() { "nothing".to_owned() } else { exports.join(", ") };
            return Err(format!(
                "it exports no hook of tidegate:policy@0.1 (admission, routing, fallback, inspection, freshness); it exports {listed}"
            ));
        }
        Ok(hooks)
    }

    /// The deciding hooks that there are.
    pub fn names(&self) -> Vec<&'static str> {
        let all = ["admission", "routing", "fallback", "inspection", "freshness"];
        all.into_iter().filter(|hook| self.has(hook)).collect()
    }

    /// Whether there is a hook.
    pub fn has(&self, hook: &str) -> bool {
        match hook {
            "admission" => self.admission.is_some(),
            "routing" => self.routing.is_some(),
            "fallback" => self.fallback.is_some(),
            "inspection" => self.inspection.is_some(),
            "freshness" => self.freshness.is_some(),
            _ => false,
        }
    }
}
