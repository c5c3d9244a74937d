//! What a plugin says that its answers depend on, and what its calls use in fact. A plugin that says wrong is not believed.

use std::sync::atomic::{AtomicBool, Ordering};

use super::bindings::hints::Facts as Flags;
use super::memory::Memory;

/// What of who asks an answer depends on, beside what is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Depends {
    /// Address, identity and user agent of the client.
    pub client: bool,
    /// Its header `Accept`, and the headers that the operator lets through.
    pub headers: bool,
}

impl Depends {
    /// What either depends on.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self { client: self.client || other.client, headers: self.headers || other.headers }
    }
}

/// A kind of host functions: what an answer depends on whose call uses one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Client,
    Headers,
    Time,
    State,
    Lookups,
}

impl Kind {
    const ALL: [Self; 5] = [Self::Client, Self::Headers, Self::Time, Self::State, Self::Lookups];

    fn flag(self) -> Flags {
        match self {
            Self::Client => Flags::CLIENT,
            Self::Headers => Flags::HEADERS,
            Self::Time => Flags::TIME,
            Self::State => Flags::STATE,
            Self::Lookups => Flags::LOOKUPS,
        }
    }

    /// The flag as it stands in the interface.
    fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Headers => "headers",
            Self::Time => "time",
            Self::State => "state",
            Self::Lookups => "lookups",
        }
    }
}

/// Host functions that a call has used: of each kind the first.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Used([Option<&'static str>; Kind::ALL.len()]);

impl Used {
    /// Takes note of one.
    pub fn note(&mut self, kind: Kind, function: &'static str) {
        self.0[kind as usize].get_or_insert(function);
    }
}

/// What a version of a plugin has said.
pub(super) struct Hints {
    flags: Flags,
    /// What it answered; none: nothing is remembered.
    memory: Option<Memory>,
    warned: AtomicBool,
}

impl Hints {
    /// `remembers`: whether the host would remember anything of this plugin.
    pub fn new(flags: Flags, remembers: bool) -> Self {
        let never = flags.intersects(Flags::TIME | Flags::STATE);
        let depends = Depends { client: flags.contains(Flags::CLIENT), headers: flags.contains(Flags::HEADERS) };
        let memory = (remembers && !never).then(|| Memory::new(depends));
        Self { flags, memory, warned: AtomicBool::new(false) }
    }

    pub fn memory(&self) -> Option<&Memory> {
        self.memory.as_ref()
    }

    /// Whether the answer of a call that used this follows from what is the same when the same is asked again. One that
    /// used what was not declared is told of, once a version.
    pub fn may_repeat(&self, used: &Used, plugin: &str, hook: &'static str) -> bool {
        if self.memory.is_none() {
            return false;
        }
        for kind in Kind::ALL {
            let Some(function) = used.0[kind as usize] else { continue };
            if !self.flags.contains(kind.flag()) {
                if !self.warned.swap(true, Ordering::Relaxed) {
                    let flag = kind.as_str();
                    tracing::warn!(
                        plugin,
                        hook,
                        function,
                        flag,
                        "a plugin uses what its `hints` do not declare: such answers are not remembered"
                    );
                }
                return false;
            }
            if kind == Kind::Lookups {
                return false;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_repeats_only_where_all_that_its_call_used_was_declared() {
        let lookups = Flags::LOOKUPS;
        for (declared, used, repeats) in [
            (Flags::empty(), None, true),
            (Flags::REPOSITORY | Flags::REFERENCE, None, true),
            (Flags::CLIENT, Some(Kind::Client), true),
            (Flags::HEADERS, Some(Kind::Headers), true),
            (Flags::CLIENT, Some(Kind::Headers), false),
            (Flags::HEADERS, Some(Kind::Client), false),
            (lookups, None, true),
            (lookups, Some(Kind::Lookups), false),
            (Flags::empty(), Some(Kind::Lookups), false),
            (Flags::empty(), Some(Kind::Time), false),
            (Flags::empty(), Some(Kind::State), false),
            (Flags::TIME, None, false),
            (Flags::STATE, None, false),
            (Flags::all(), None, false),
        ] {
            let mut calls = Used::default();
            if let Some(kind) = used {
                calls.note(kind, "call.something");
            }
            let hints = Hints::new(declared, true);
            assert_eq!(hints.may_repeat(&calls, "p", "admission"), repeats, "{declared:?} {used:?}");
            assert!(!Hints::new(declared, false).may_repeat(&calls, "p", "admission"));
        }
    }
}
