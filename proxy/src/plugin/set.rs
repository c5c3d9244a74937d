//! The plugins in effect, and what they decide together. A request takes one set and keeps it (I2).

use std::sync::Arc;

use super::bindings::types;
use super::convert::{self, Routes, Step, Verdict};
use super::facts::Question;
use super::folder::Version;
use super::instance::{Answer, CallError, Hook, Plugin};
use super::settings::OnError;
use crate::oci::{Attempt, Candidate, Code, Denial};

/// An immutable set of plugins, in the order of their files.
#[derive(Default)]
pub struct PluginSet {
    /// Counts up at each swap.
    pub(super) generation: u64,
    pub(super) plugins: Vec<Arc<Plugin>>,
    /// Those that are switched off: what is known of them is their files.
    pub(super) off: Vec<Arc<Version>>,
}

/// What all admission plugins say together.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Admission {
    /// Go on.
    Allow,
    /// Only what the cache holds; which plugin says so.
    CachedOnly(String),
    /// No.
    Deny(Denial),
}

/// What one plugin decides in a dry run.
#[derive(Clone, Debug)]
pub struct Opinion {
    /// Its name.
    pub plugin: String,
    /// Which hook.
    pub hook: &'static str,
    /// What it decides, in words.
    pub decides: String,
}

impl PluginSet {
    /// Names of the plugins, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.plugins.iter().map(|plugin| plugin.version.name.as_str())
    }

    /// Asks every admission plugin until one denies.
    pub async fn admit(&self, question: &Question) -> Admission {
        let mut together = Admission::Allow;
        let mut request = None;
        for plugin in self.plugins.iter().filter(|plugin| plugin.hooks.admits()) {
            let request = request.get_or_insert_with(|| convert::request(&question.pull));
            match plugin.admit(question, request).await {
                Verdict::Allow => {}
                Verdict::CachedOnly => together = Admission::CachedOnly(plugin.version.name.clone()),
                Verdict::Deny(denial) => return Admission::Deny(denial),
            }
        }
        together
    }

    /// Passes the candidates through every routing plugin.
    ///
    /// # Errors
    /// The denial of the first that denies.
    pub async fn route(&self, question: &Question, mut candidates: Vec<Candidate>) -> Result<Vec<Candidate>, Denial> {
        let mut request = None;
        for plugin in self.plugins.iter().filter(|plugin| plugin.hooks.routes()) {
            let request = request.get_or_insert_with(|| convert::request(&question.pull));
            match plugin.route(question, request, &candidates).await {
                Routes::Pass => {}
                Routes::To(these) => candidates = these,
                Routes::Deny(denial) => return Err(denial),
            }
        }
        Ok(candidates)
    }

    /// Asks the fallback plugins what to do after the last of `attempts`; the first opinion holds.
    pub async fn on_failure(&self, question: &Question, attempts: &[Attempt], remaining: &[Candidate]) -> Step {
        if !self.plugins.iter().any(|plugin| plugin.hooks.falls_back()) {
            return Step::Pass;
        }
        let request = convert::request(&question.pull);
        let attempts: Vec<_> = attempts.iter().map(convert::attempt).collect();
        let remaining: Vec<_> = remaining.iter().map(convert::candidate).collect();
        for plugin in self.plugins.iter().filter(|plugin| plugin.hooks.falls_back()) {
            let answer = match plugin.call(&Hook::OnFailure(&request, &attempts, &remaining), question).await {
                Ok(Answer::Step(step)) => {
                    plugin.usable("fallback", question, convert::step(step, &plugin.version.name, &question.pull))
                }
                Ok(_) => Err(CallError::Unusable("it answers another question".to_owned())),
                Err(err) => Err(err),
            };
            match answer {
                Ok(Step::Pass) => {}
                Ok(step) => return step,
                Err(err) if plugin.settings.on_error == Some(OnError::Deny) => return Step::Deny(plugin.failure(&err)),
                Err(_) => {}
            }
        }
        Step::Pass
    }

    /// What each plugin decides for a pull, in order, and the candidates that come of it; none where one denies.
    pub async fn explain(&self, question: &Question, first: Candidate) -> (Vec<Opinion>, Option<Vec<Candidate>>) {
        let request = convert::request(&question.pull);
        let (mut opinions, mut denied) = (Vec::new(), false);
        let mut opine = |plugin: &Plugin, hook, decides| {
            opinions.push(Opinion { plugin: plugin.version.name.clone(), hook, decides });
        };
        for plugin in self.plugins.iter().filter(|plugin| plugin.hooks.admits()) {
            let decides = match plugin.admit(question, &request).await {
                Verdict::Allow => "allow".to_owned(),
                Verdict::CachedOnly => "only from the cache".to_owned(),
                Verdict::Deny(denial) => {
                    denied = true;
                    format!("deny ({} {}): {}", denial.status, denial.code.as_str(), denial.message)
                }
            };
            opine(plugin, "admission", decides);
        }
        if denied {
            return (opinions, None);
        }
        let mut candidates = vec![first];
        for plugin in self.plugins.iter().filter(|plugin| plugin.hooks.routes()) {
            let routes = plugin.route(question, &request, &candidates).await;
            let decides = match &routes {
                Routes::Pass => "as they are".to_owned(),
                Routes::To(these) if these.is_empty() => "nowhere: only the cache may serve".to_owned(),
                Routes::To(these) => these.iter().map(|it| it.place.to_string()).collect::<Vec<_>>().join(", then "),
                Routes::Deny(denial) => {
                    format!("deny ({} {}): {}", denial.status, denial.code.as_str(), denial.message)
                }
            };
            opine(plugin, "routing", decides);
            match routes {
                Routes::Pass => {}
                Routes::To(these) => candidates = these,
                Routes::Deny(_) => return (opinions, None),
            }
        }
        for plugin in self.plugins.iter().filter(|plugin| plugin.hooks.falls_back()) {
            opine(plugin, "fallback", "asked after each failed attempt".to_owned());
        }
        (opinions, Some(candidates))
    }
}

impl Plugin {
    /// A failed call denies, unless the operator says otherwise: a policy that does not answer is not no policy.
    async fn admit(&self, question: &Question, request: &types::Request) -> Verdict {
        let err = match self.call(&Hook::Admit(request), question).await {
            Ok(Answer::Verdict(verdict)) => return convert::verdict(verdict, &self.version.name),
            Ok(_) => CallError::Unusable("it answers another question".to_owned()),
            Err(err) => err,
        };
        match self.settings.on_error {
            Some(OnError::Skip) => Verdict::Allow,
            Some(OnError::Deny) | None => Verdict::Deny(self.failure(&err)),
        }
    }

    /// As with admission: to go where a silent plugin would not have led is to break its policy.
    async fn route(&self, question: &Question, request: &types::Request, candidates: &[Candidate]) -> Routes {
        let candidates: Vec<_> = candidates.iter().map(convert::candidate).collect();
        let answer = match self.call(&Hook::Route(request, &candidates), question).await {
            Ok(Answer::Routes(routes)) => {
                self.usable("routing", question, convert::routes(routes, &self.version.name, &question.pull))
            }
            Ok(_) => Err(CallError::Unusable("it answers another question".to_owned())),
            Err(err) => Err(err),
        };
        match (answer, self.settings.on_error) {
            (Ok(routes), _) => routes,
            (Err(_), Some(OnError::Skip)) => Routes::Pass,
            (Err(err), Some(OnError::Deny) | None) => Routes::Deny(self.failure(&err)),
        }
    }

    /// An answer that cannot be used is a failed call.
    fn usable<T>(&self, hook: &'static str, question: &Question, converted: Result<T, String>) -> Result<T, CallError> {
        converted.map_err(CallError::Unusable).inspect_err(|err| self.report(hook, question, err))
    }

    fn failure(&self, err: &CallError) -> Denial {
        let name = &self.version.name;
        Denial {
            status: 403,
            code: Code::Denied,
            plugin: name.clone(),
            message: format!("the policy could not decide: {err}"),
            retry_after: None,
        }
    }
}
