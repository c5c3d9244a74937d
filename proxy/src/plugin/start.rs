//! The first reading of the plugin folder: what is bad is replaced by the last good version of it, or refuses the start.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::folder;
use super::lock::Lock;
use super::reload::{Loaded, Loader, StartError};
use super::watch::SETTLE;
use crate::config::OnLoadError;

/// How long a start waits for files that are just being written.
const START_PATIENCE: Duration = Duration::from_secs(5);

impl Loader {
    /// The first reading. A bad plugin is replaced by its last good version; with none, it is refused or skipped.
    pub(super) async fn start(&mut self, on_load_error: OnLoadError) -> Result<(), StartError> {
        let folder = |source| StartError::Folder { dir: self.dir.clone(), source };
        let mut listing = folder::list(&self.dir).map_err(folder)?;
        // A file that is just being written is waited for, within reason: one that never rests is read as it is.
        let patience = Instant::now() + START_PATIENCE;
        while self.sightings.look(&listing, Instant::now()).is_some() && Instant::now() < patience {
            tokio::time::sleep(SETTLE).await;
            listing = folder::list(&self.dir).map_err(|source| StartError::Folder { dir: self.dir.clone(), source })?;
        }
        // Without a list that can be read nothing is known to be right, whatever may be skipped otherwise.
        self.lock = listing.lock.as_deref().map(Lock::read).transpose().map_err(|bad| StartError::Bad(vec![bad]))?;
        let mut plugins = Vec::new();
        let mut bad = Vec::new();
        for found in &listing.found {
            let read = found.read().and_then(|version| self.check_lock(found, &version).map(|()| version));
            let loaded = match read {
                Ok(version) => self.load(version, None).await,
                Err(reason) => {
                    self.report_once(reason.clone());
                    Err(self.refuse(&found.name, &found.file, reason))
                }
            };
            match loaded {
                Ok(plugin) => plugins.push(plugin),
                Err(reason) => match self.load_last_good(&found.name, &found.file).await {
                    Some(plugin) => plugins.push(plugin),
                    None => bad.push(format!("{}: {reason}", self.dir.join(&found.file).display())),
                },
            }
        }
        let mut stood_in = HashSet::new();
        for problem in &listing.problems {
            let name = problem.name.as_deref().unwrap_or(&problem.file);
            self.report_once(format!("{}: {}", problem.file, problem.reason));
            self.refuse(name, &problem.file, problem.reason.clone());
            if let Some(name) = &problem.name
                && !stood_in.contains(name)
                && let Some(plugin) = self.load_last_good(name, &problem.file).await
            {
                stood_in.insert(name.clone());
                plugins.push(plugin);
            } else if problem.name.as_ref().is_none_or(|name| !stood_in.contains(name)) {
                bad.push(format!("{}: {}", self.dir.join(&problem.file).display(), problem.reason));
            }
        }
        self.report_strays(&listing);
        self.end_reports();
        if !bad.is_empty() && on_load_error == OnLoadError::Refuse {
            return Err(StartError::Bad(bad));
        }
        for bad in bad {
            tracing::warn!(reason = bad, "a plugin is skipped, as `on_load_error` says: its policy is not in effect");
        }
        self.swap(plugins);
        Ok(())
    }

    async fn load_last_good(&mut self, name: &str, file: &str) -> Option<Loaded> {
        let last_good = self.last_good.clone()?;
        let wanted = name.to_owned();
        let mut version = tokio::task::spawn_blocking(move || last_good.get(&wanted)).await.ok()??;
        // It takes the place of the bad file.
        file.clone_into(&mut version.file);
        match self.make(version, None).await {
            Ok(loaded) => {
                tracing::warn!(plugin = name, file, "the last good version serves in place of the file");
                Some(loaded)
            }
            Err(reason) => {
                tracing::error!(plugin = name, reason, "the last good version does not load either");
                None
            }
        }
    }
}
