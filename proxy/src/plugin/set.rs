//! The plugins in effect, and what they decide together. A request takes one set and keeps it (I2).

use std::sync::Arc;
use std::time::Duration;

use super::convert;
use super::facts::{Decided, Question};
use super::folder::Version;
use super::hints::Depends;
use super::instance::{CallError, Plugin, Tally};
use super::memory::Key;
use super::ruling::{Ask, Finding, Routes, Rule, Ruling, Step, Verdict};
use super::settings::{Mode, OnError};
use crate::metrics::Shadow as ShadowLabels;
use crate::oci::{Asked, Attempt, Candidate, Code, Content, Denial, Digest};

/// An immutable set of plugins, in the order of their files.
#[derive(Default)]
pub struct PluginSet {
    /// Counts up at each swap.
    pub(super) generation: u64,
    pub(super) plugins: Vec<Arc<Plugin>>,
    /// Those that are switched off: what is known of them is their files.
    pub(super) off: Vec<Arc<Version>>,
}

/// What counts decisions that hold once more. It keeps no plugin: one that was replaced goes, with all its instances.
pub struct Counting(Vec<Tally>);

impl Counting {
    /// Counts them.
    pub fn count(&self) {
        self.0.iter().for_each(Tally::count);
    }
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

impl PluginSet {
    /// Names of the plugins, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.plugins.iter().map(|plugin| plugin.version.name.as_str())
    }

    /// Names of the plugins that decide by a hook about a pull.
    pub fn names_with(&self, hook: &'static str, question: &Question) -> Vec<String> {
        self.live(hook, question).map(|plugin| plugin.version.name.clone()).collect()
    }

    /// Counts up at each swap.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The plugins that are asked about a pull by a hook, and decide.
    fn live<'a>(&'a self, hook: &'static str, question: &'a Question) -> impl Iterator<Item = &'a Arc<Plugin>> {
        self.asked(hook, question, Mode::Enforce)
    }

    fn asked<'a>(
        &'a self,
        hook: &'static str,
        question: &'a Question,
        mode: Mode,
    ) -> impl Iterator<Item = &'a Arc<Plugin>> {
        let place = question.asked.place();
        self.plugins
            .iter()
            .filter(move |plugin| plugin.settings.mode == mode && plugin.hooks.has(hook) && plugin.settings.sees(place))
    }

    /// Asks every admission plugin until one denies; in a dry run all of them.
    pub async fn admit(&self, question: &Question) -> Admission {
        let mut together = Admission::Allow;
        let mut ask = None;
        let mut key = None;
        for plugin in self.live("admission", question) {
            let key = key.get_or_insert_with(|| Key::admission(question)).as_ref();
            let ruling = if let Some(ruling) = plugin.remembered(key, Ask::ADMISSION, question) {
                ruling
            } else {
                let ask = ask.get_or_insert_with(|| Ask::Admit(convert::request(&question.asked)));
                plugin.rule(ask, question, key).await
            };
            match ruling {
                Ruling::Verdict(Verdict::CachedOnly) if together == Admission::Allow => {
                    together = Admission::CachedOnly(plugin.version.name.clone());
                }
                Ruling::Verdict(Verdict::Deny(denial)) if !matches!(together, Admission::Deny(_)) => {
                    together = Admission::Deny(denial);
                    if !question.dry_run {
                        break;
                    }
                }
                _ => {}
            }
        }
        let live = Ruling::Verdict(match &together {
            Admission::Allow => Verdict::Allow,
            Admission::CachedOnly(_) => Verdict::CachedOnly,
            Admission::Deny(denial) => Verdict::Deny(denial.clone()),
        });
        self.shadow("admission", question, &live, || Ask::Admit(convert::request(&question.asked))).await;
        together
    }

    /// Passes the candidates through every routing plugin.
    ///
    /// # Errors
    /// The denial of the first that denies.
    pub async fn route(&self, question: &Question, mut candidates: Vec<Candidate>) -> Result<Vec<Candidate>, Denial> {
        let mut request = None;
        for plugin in self.plugins.iter().filter(|plugin| plugin.hooks.has("routing")) {
            if plugin.settings.mode == Mode::Off || !plugin.settings.sees(question.asked.place()) {
                continue;
            }
            let key = Key::routing(question, &candidates);
            if let Some(ruling) = plugin.remembered(key.as_ref(), Ask::ROUTING, question) {
                match ruling {
                    Ruling::Routes(Routes::To(these)) => candidates = these,
                    Ruling::Routes(Routes::Deny(denial)) => return Err(denial),
                    _ => {}
                }
                continue;
            }
            let request = request.get_or_insert_with(|| convert::request(&question.asked)).clone();
            let ask = Ask::Route(request, candidates.iter().map(convert::candidate).collect());
            if plugin.settings.mode == Mode::Shadow {
                plugin.shadow(ask, question, Ruling::Routes(Routes::To(candidates.clone()))).await;
                continue;
            }
            match plugin.rule(&ask, question, key.as_ref()).await {
                Ruling::Routes(Routes::To(these)) => candidates = these,
                Ruling::Routes(Routes::Deny(denial)) => return Err(denial),
                _ => {}
            }
        }
        Ok(candidates)
    }

    /// Asks the fallback plugins what to do after the last of `attempts`; the first opinion holds.
    pub async fn on_failure(&self, question: &Question, attempts: &[Attempt], remaining: &[Candidate]) -> Step {
        if !self.plugins.iter().any(|plugin| plugin.hooks.has("fallback")) {
            return Step::Pass;
        }
        let ask = Ask::OnFailure(
            convert::request(&question.asked),
            attempts.iter().map(convert::attempt).collect(),
            remaining.iter().map(convert::candidate).collect(),
        );
        let mut together = Step::Pass;
        for plugin in self.live("fallback", question) {
            if let Ruling::Step(step) = plugin.rule(&ask, question, None).await
                && step != Step::Pass
            {
                together = step;
                break;
            }
        }
        self.shadow("fallback", question, &Ruling::Step(together.clone()), || ask.clone()).await;
        together
    }

    /// Whether anybody looks at manifests of this pull.
    pub fn inspects(&self, question: &Question) -> bool {
        [Mode::Enforce, Mode::Shadow].into_iter().any(|mode| self.asked("inspection", question, mode).next().is_some())
    }

    /// Whether any plugin is asked where a pull may come from.
    pub fn routes(&self, question: &Question) -> bool {
        self.live("routing", question).next().is_some()
    }

    /// Asks every inspection plugin about the manifest of the question until one does not release it.
    ///
    /// # Errors
    /// The denial of the first that denies or holds.
    pub async fn inspect(&self, question: &Question) -> Result<(), Denial> {
        let ask = Ask::Inspect(convert::request(&question.asked));
        let mut together = Finding::Release;
        for plugin in self.live("inspection", question) {
            if let Ruling::Finding(finding) = plugin.rule(&ask, question, None).await
                && together == Finding::Release
                && finding != Finding::Release
            {
                together = finding;
                if !question.dry_run {
                    break;
                }
            }
        }
        self.shadow("inspection", question, &Ruling::Finding(together.clone()), || ask.clone()).await;
        match together {
            Finding::Release => Ok(()),
            Finding::Hold(denial) | Finding::Deny(denial) => Err(denial),
        }
    }

    /// Asks the freshness plugins about a tag, and about the copy of it that the cache holds; the first opinion holds.
    /// `cached` is looked up only where there is a plugin to be asked.
    pub async fn judge<F>(&self, question: &Question, cached: impl FnOnce() -> F) -> Rule
    where
        F: Future<Output = Option<(Digest, Duration)>>,
    {
        if !self.plugins.iter().any(|plugin| plugin.hooks.has("freshness")) {
            return Rule::Pass;
        }
        let ask = Ask::Judge(convert::request(&question.asked), convert::cached_tag(cached().await));
        let mut together = Rule::Pass;
        for plugin in self.live("freshness", question) {
            if let Ruling::Rule(rule) = plugin.rule(&ask, question, None).await
                && rule != Rule::Pass
            {
                together = rule;
                break;
            }
        }
        self.shadow("freshness", question, &Ruling::Rule(together.clone()), || ask.clone()).await;
        together
    }

    /// Whether what the plugins decide about a pull before an upstream is asked would be decided again for an equal one, as
    /// long as this set is in effect; and what of who asks belongs to it. None: some plugin that would be asked by
    /// `admission`, `routing`, `freshness` or `inspection` remembers nothing, or decides in shadow mode.
    ///
    /// Who remembers more than single answers for that must also see [`Facts::is_repeatable`] when all has been decided:
    /// a call may have used what the plugin had not declared. What is decided once more without asking is counted by
    /// [`PluginSet::counting`].
    pub fn remembers(&self, question: &Question) -> Option<Depends> {
        let Asked::Pull(pull) = &question.asked else { return None };
        let by_tag = question.asked.is_pull_of_tag();
        let is_manifest = matches!(pull.content, Content::Manifest(_));
        let mut depends = Depends::default();
        for plugin in self.plugins.iter().filter(|plugin| plugin.settings.sees(&pull.place)) {
            let hooks = &plugin.hooks;
            if (by_tag && hooks.freshness.is_some()) || (is_manifest && hooks.inspection.is_some()) {
                return None;
            }
            if hooks.admission.is_some() || hooks.routing.is_some() {
                depends = depends.or(plugin.memory()?.depends());
            }
        }
        Some(depends)
    }

    /// Whether any plugin says that it decides by who asks.
    pub fn asks_who(&self) -> bool {
        self.plugins.iter().any(|plugin| plugin.memory().is_some_and(|memory| memory.depends().client))
    }

    /// What counts decisions that hold for other requests too, each time that they do. `decided`: what
    /// [`Facts::decided`] gave, under this set.
    pub fn counting(&self, decided: &[Decided]) -> Counting {
        let hook = |one: &Decided| match one.hook {
            "admission" => Some(Ask::ADMISSION),
            "routing" => Some(Ask::ROUTING),
            _ => None,
        };
        let named = |one: &Decided| self.plugins.iter().find(|plugin| Arc::ptr_eq(&plugin.name, &one.plugin));
        Counting(decided.iter().filter_map(|one| Some(named(one)?.tally(hook(one)?))).collect())
    }

    /// Lets the plugins in shadow mode decide beside what the live ones decided.
    async fn shadow(&self, hook: &'static str, question: &Question, live: &Ruling, ask: impl Fn() -> Ask) {
        // What is denied stays so, whatever a shadow would have said.
        if live.word() == "deny" && !question.dry_run {
            return;
        }
        for plugin in self.asked(hook, question, Mode::Shadow) {
            plugin.shadow(ask(), question, live.clone()).await;
        }
    }
}

impl Plugin {
    /// Asks the plugin; where it fails, its `on_error` answers, or what its hook needs: a policy that does not answer is
    /// not no policy. `key`: what the answer may be remembered for.
    pub(super) async fn rule(&self, ask: &Ask, question: &Question, key: Option<&Key<'_>>) -> Ruling {
        // In a box it takes no room in the future of a request whose answers are remembered.
        let (answer, took) = Box::pin(self.call(ask, question)).await;
        let (ruling, failed) = match answer {
            Ok((ruling, used)) => {
                if !key.is_some_and(|key| self.remember(key, ask, &ruling, &used)) {
                    question.facts.pass();
                }
                (ruling, None)
            }
            Err(err) => {
                question.facts.pass();
                let denies = match self.settings.on_error {
                    Some(OnError::Deny) => true,
                    Some(OnError::Skip) => false,
                    None => ask.fails_closed(),
                };
                let stands_in = if denies { ask.denied(self.failure(&err)) } else { ask.neutral() };
                (stands_in, Some(err.to_string()))
            }
        };
        question.facts.note(self.decided(ask.hook(), &ruling, failed, took));
        ruling
    }

    /// What it ruled when it was asked the same before; none: it has to be called.
    fn remembered(&self, key: Option<&Key<'_>>, hook: (usize, &'static str), question: &Question) -> Option<Ruling> {
        let found = self.recall(key?, hook)?;
        let ruling = &found.as_ref()?.ruling;
        question.facts.note(self.decided(hook.1, ruling, None, Duration::ZERO));
        Some(ruling.clone())
    }

    fn decided(&self, hook: &'static str, ruling: &Ruling, failed: Option<String>, took: Duration) -> Decided {
        Decided {
            plugin: self.name.clone(),
            hook,
            mode: self.settings.mode,
            ruling: ruling.word(),
            detail: ruling.detail(),
            candidates: ruling.places(),
            failed,
            took,
        }
    }

    /// Lets it decide in a task of its own, so that nobody waits for it; in a dry run here and now. What it decides is
    /// compared with what the live plugins did.
    async fn shadow(self: &Arc<Self>, ask: Ask, question: &Question, live: Ruling) {
        let Ok(turn) = self.shadows().try_acquire_owned() else {
            return self.count_shadow(&ask, "skipped");
        };
        let shadow = question.facts.begin_shadow();
        let (plugin, question) = (self.clone(), question.clone());
        let dry_run = question.dry_run;
        let deciding = async move {
            let ruling = plugin.rule(&ask, &question, None).await;
            let other = ruling.would_change(&live);
            if other {
                let (request, pull) = (question.facts.id.as_str(), question.asked.to_string());
                let (hook, live) = (ask.hook(), live.word());
                let (would, reason) = (ruling.word(), ruling.detail());
                tracing::info!(plugin = %plugin.name, hook, request, pull, live, would, reason, "a plugin in shadow mode would have decided otherwise");
            }
            plugin.count_shadow(&ask, if other { "other" } else { "same" });
            drop((turn, shadow));
        };
        if dry_run {
            deciding.await;
        } else {
            tokio::spawn(deciding);
        }
    }

    fn count_shadow(&self, ask: &Ask, outcome: &'static str) {
        let labels = ShadowLabels { plugin: self.version.name.clone(), hook: ask.hook(), outcome };
        self.metrics().plugin_shadows.get_or_create(&labels).inc();
    }

    fn failure(&self, err: &CallError) -> Denial {
        Denial {
            status: 403,
            code: Code::Denied,
            plugin: self.version.name.clone(),
            message: format!("the policy could not decide: {err}"),
            retry_after: None,
        }
    }
}
