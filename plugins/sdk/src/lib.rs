//! What a Tidegate plugin is built on. An author writes a type, and of the hooks the methods that it wants:
//!
//! ```
//! use tidegate_sdk::{Request, Verdict};
//!
//! struct NoLatest;
//!
//! #[tidegate_sdk::plugin]
//! impl NoLatest {
//!     fn admit(request: &Request) -> Verdict {
//!         match request.tag() {
//!             Some("latest") => Verdict::deny(format!("{request} is denied: name a version")),
//!             _ => Verdict::Allow,
//!         }
//!     }
//! }
//! # fn main() {}
//! ```
//!
//! Off WebAssembly, in an author's unit tests, [`testing`] stands in for the host.

// The bindings name this crate as plugins do: the export macros expand in both.
extern crate self as tidegate_sdk;

#[cfg(all(target_arch = "wasm32", not(target_feature = "atomics")))]
mod arena;
#[doc(hidden)]
pub mod bindings;
pub mod config;
pub mod date;
pub mod hook;
pub mod key;
pub mod log;
pub mod name;
pub mod pattern;
#[cfg(not(target_arch = "wasm32"))]
pub mod testing;
mod words;

/// The host, as this target sees it.
#[cfg(target_arch = "wasm32")]
use bindings::tidegate::policy as host;
#[cfg(not(target_arch = "wasm32"))]
use testing as host;

pub use bindings::admission::exports::tidegate::policy::admission::Verdict;
pub use bindings::fallback::exports::tidegate::policy::fallback::Step;
pub use bindings::freshness::exports::tidegate::policy::freshness::{CachedTag, Rule};
pub use bindings::hints::exports::tidegate::policy::hints::Facts;
pub use bindings::inspection::exports::tidegate::policy::inspection::{Finding, Hold};
pub use bindings::routing::exports::tidegate::policy::routing::Routes;
pub use bindings::tidegate::policy::types::{
    Action, Attempt, Cached, Candidate, Content, Denial, Descriptor, Failure, Identity, Pair, Reference, Request,
};
pub use config::{Config, File};
pub use hook::{Admission, Fallback, Freshness, Hints, Inspection, Lifecycle, Routing};
pub use host::{call, clock, image, metrics, registry, state};
pub use pattern::Pattern;

/// Makes the methods of a type the hooks of the plugin: `check`, `depends_on`, `admit`, `route`, `on_failure`,
/// `inspect`, `judge`, with the parameters of the traits in [`hook`]. Other functions go into another `impl`.
///
/// A method gives the answer of its hook, or a `Result` of it: an error fails the call, and its text is the reason in
/// the proxy's log.
///
/// ```
/// use tidegate_sdk::{Request, Verdict, state};
///
/// struct Limit;
///
/// #[tidegate_sdk::plugin]
/// impl Limit {
///     fn admit(request: &Request) -> Result<Verdict, String> {
///         let pulls = state::add(&request.repository, 1, Some(3600)).map_err(|error| format!("no count: {error:?}"))?;
///         Ok(if pulls > 1000 { Verdict::deny(format!("{request}: enough for an hour")) } else { Verdict::Allow })
///     }
/// }
/// # fn main() {}
/// ```
///
/// A plugin that keeps nothing between two calls says what its answers depend on, and the host may remember them:
///
/// ```
/// use tidegate_sdk::{Facts, Request, Verdict, call};
///
/// struct Known;
///
/// #[tidegate_sdk::plugin]
/// impl Known {
///     fn depends_on() -> Facts {
///         Facts::CLIENT
///     }
///
///     fn admit(request: &Request) -> Verdict {
///         if call::client().is_some() { Verdict::Allow } else { Verdict::deny(format!("{request}: who asks?")) }
///     }
/// }
/// # fn main() {}
/// ```
///
/// A name that is no hook is an error where it stands:
///
/// ```compile_fail
/// # use tidegate_sdk::{Request, Verdict};
/// # struct NoLatest;
/// #[tidegate_sdk::plugin]
/// impl NoLatest {
///     fn admitt(request: &Request) -> Verdict {
///         Verdict::Allow
///     }
/// }
/// # fn main() {}
/// ```
pub use tidegate_sdk_macros::plugin;
#[doc(hidden)]
pub use wit_bindgen;

/// Exports the hooks of a type that has them as traits: `export!(Allowlist: lifecycle, admission)`. The component offers the hooks that are
/// named here and no other: `lifecycle`, `hints`, `admission`, `routing`, `fallback`, `inspection`, `freshness`.
#[macro_export]
macro_rules! export {
    ($plugin:ty: $($hook:ident),+ $(,)?) => {
        $($crate::__export_hook!($hook, $plugin);)+
    };
}

/// One hook of `export!`.
#[doc(hidden)]
#[macro_export]
macro_rules! __export_hook {
    (lifecycle, $plugin:ty) => {
        $crate::__export_hook!(Lifecycle, lifecycle, export_lifecycle, $plugin);
    };
    (hints, $plugin:ty) => {
        $crate::__export_hook!(Hints, hints, export_hints, $plugin);
    };
    (admission, $plugin:ty) => {
        $crate::__export_hook!(Admission, admission, export_admission, $plugin);
    };
    (routing, $plugin:ty) => {
        $crate::__export_hook!(Routing, routing, export_routing, $plugin);
    };
    (fallback, $plugin:ty) => {
        $crate::__export_hook!(Fallback, fallback, export_fallback, $plugin);
    };
    (inspection, $plugin:ty) => {
        $crate::__export_hook!(Inspection, inspection, export_inspection, $plugin);
    };
    (freshness, $plugin:ty) => {
        $crate::__export_hook!(Freshness, freshness, export_freshness, $plugin);
    };
    ($trait:ident, $hook:ident, $export:ident, $plugin:ty) => {
        const _: () = {
            // Off WebAssembly nothing is exported, and the types are checked all the same.
            const fn implements<T: $crate::hook::$trait>() {}
            implements::<$plugin>();
            #[cfg(target_arch = "wasm32")]
            #[allow(unsafe_code, clippy::all, clippy::pedantic)]
            mod exported {
                use super::*;
                type TidegatePlugin = $crate::hook::Hook<$plugin>;
        $crate::bindings::$hook::$export!(TidegatePlugin with_types_in $crate::bindings::$hook);
            }
        };
    };
    ($other:ident, $plugin:ty) => {
        compile_error!("a hook is one of lifecycle, hints, admission, routing, fallback, inspection, freshness");
    };
}
