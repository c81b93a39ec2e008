//! Looking through a store: whether everything can be read, fits together and makes sense. The engines verify their own
//! checksums as they read; a file or row that is damaged is named in the error.

use crate::transfer::PAGE;
use crate::{Change, Changes, Entry, Error, ListOptions, Result, Revision, Storage};
use futures::StreamExt;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Complaints that are kept; a store in which all is wrong is not described in full.
const COMPLAINTS_MAX: usize = 100;

/// Whether a value makes sense under its key; what is wrong otherwise.
pub type Decode<'a> = dyn Fn(&str, &[u8]) -> std::result::Result<(), String> + Send + Sync + 'a;

#[derive(Debug, Default)]
pub struct Report {
    pub revision: u64,
    pub entries: u64,
    pub bytes: u64,
    /// Commits in the history, which begins after `oldest`.
    pub commits: u64,
    pub oldest: u64,
    pub expiring: u64,
    /// What is wrong, and where.
    pub complaints: Vec<String>,
}

impl Report {
    fn complain(&mut self, what: String) {
        if self.complaints.len() < COMPLAINTS_MAX {
            self.complaints.push(what);
        }
    }
}

/// `told` is called now and then with the number of entries. The store may be in use meanwhile.
pub async fn check(store: &dyn Storage, decode: &Decode<'_>, told: impl Fn(u64)) -> Result<Report> {
    let revision = store.current_revision().await?;
    let mut report = Report { revision: revision.0, ..Report::default() };
    let mut present: HashMap<Arc<str>, Revision> = HashMap::new();
    let mut options = ListOptions { at: Some(revision), limit: Some(PAGE), from: None };
    let mut last: Option<Arc<str>> = None;
    loop {
        let page = match store.list(store.root(), options.clone()).await {
            Ok(page) => page,
            Err(Error::Corrupt { place, what }) => {
                // The page cannot be read, and so what lies behind it cannot be reached.
                let from = options.from.as_deref().unwrap_or("the beginning");
                report.complain(format!("{place}: {what} (reading from {from})"));
                break;
            }
            Err(error) => return Err(error),
        };
        for Entry { key, value, created, modified } in page.entries {
            if last.as_ref().is_some_and(|last| *last >= key) {
                report.complain(format!("{key}: it comes out of order"));
            }
            if created > modified || modified > revision || created.0 == 0 {
                report.complain(format!("{key}: made at {created} and changed at {modified} cannot be, at {revision}"));
            }
            if let Err(what) = decode(&key, &value) {
                report.complain(format!("{key}: {what}"));
            }
            report.entries += 1;
            report.bytes += value.len() as u64;
            present.insert(key.clone(), modified);
            last = Some(key);
        }
        told(report.entries);
        options.from = page.next;
        if options.from.is_none() {
            break;
        }
    }
    match store.expiring(Revision(0)).await {
        Ok(expiring) => report.expiring = expiring.len() as u64,
        Err(Error::Corrupt { place, what }) => report.complain(format!("{place}: {what}")),
        Err(error) => return Err(error),
    }
    if let Err(error) = history(store, revision, &present, &mut report).await {
        match error {
            Error::Corrupt { place, what } => report.complain(format!("{place}: {what}")),
            other => return Err(other),
        }
    }
    Ok(report)
}

/// Goes through the history: revisions rise, and the last change of every key is what the key is.
async fn history(
    store: &dyn Storage,
    until: Revision,
    present: &HashMap<Arc<str>, Revision>,
    report: &mut Report,
) -> Result<()> {
    let (mut stream, oldest) = match store.changes(store.root(), Revision(0)).await {
        Ok(stream) => (stream, Revision(0)),
        Err(Error::Compacted { oldest, .. }) => (store.changes(store.root(), oldest).await?, oldest),
        Err(error) => return Err(error),
    };
    report.oldest = oldest.0;
    let mut seen = oldest;
    let mut last: HashMap<Arc<str>, Option<Revision>> = HashMap::new();
    while seen < until {
        store.request_progress().await?;
        let next = tokio::time::timeout(Duration::from_secs(30), stream.next()).await;
        let stalled = || Error::Unavailable { operation: "check", source: "the history cannot be read on".into() };
        let Changes { revision, changes } = match next.map_err(|_| stalled())?.ok_or_else(stalled)? {
            // A server that keeps house forgets while we read; etcd says so of the first revisions only now.
            Err(Error::Compacted { oldest, .. }) if oldest > seen => {
                stream = store.changes(store.root(), oldest).await?;
                (seen, report.oldest) = (oldest, oldest.0);
                continue;
            }
            next => next?,
        };
        if changes.is_empty() {
            seen = seen.max(revision);
            continue;
        }
        report.commits += 1;
        for Change { key, value, revision: of_change, .. } in changes {
            if of_change != revision || value.as_ref().is_some_and(|v| v.modified != revision) {
                report.complain(format!("{key}: the history at {revision} has something else"));
            }
            if revision <= until {
                last.insert(key, value.map(|v| v.modified));
            }
        }
        seen = revision;
    }
    for (key, changed) in last {
        if present.get(&key).copied() != changed {
            let now = present.get(&key).map_or("absent".to_owned(), |r| format!("from revision {r}"));
            report.complain(format!("{key}: the history and the present differ: {now} where {changed:?} was last"));
        }
    }
    Ok(())
}
