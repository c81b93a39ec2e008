//! What must hold of everything that clients and watches saw in a run, whatever happened to the servers meanwhile.

use super::history::{Answer, Call, Operation, Version};
use super::linear::{self, Verdict};
use std::collections::BTreeMap;

/// One change as a watch told it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub revision: u64,
    pub key: String,
    /// The write that the object comes from; none if it was deleted.
    pub id: Option<u64>,
}

/// What one watch saw, over however many connections.
#[derive(Clone, Debug, Default)]
pub struct Watched {
    pub name: String,
    /// The state that the watch began from, and its revision.
    pub begin: (u64, BTreeMap<String, Version>),
    pub events: Vec<Event>,
    /// The last revision that the watch is known to have passed.
    pub reached: u64,
}

/// A whole list, and the revision that it says it is of.
#[derive(Clone, Debug)]
pub struct Listed {
    pub revision: u64,
    pub objects: BTreeMap<String, Version>,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub operations: usize,
    pub acknowledged: usize,
    pub unknown: usize,
    pub objects: usize,
    pub events: usize,
    pub lists: usize,
}

/// Everything that is wrong, in words; none if nothing is.
pub fn check(
    histories: &BTreeMap<String, Vec<Operation>>,
    watches: &[Watched],
    lists: &[Listed],
) -> Result<Summary, Vec<String>> {
    let mut wrong = Vec::new();
    let mut summary = Summary { objects: histories.len(), lists: lists.len(), ..Summary::default() };
    for operation in histories.values().flatten() {
        summary.operations += 1;
        summary.acknowledged += usize::from(matches!(operation.answer, Answer::Put(_) | Answer::Deleted));
        summary.unknown += usize::from(operation.answer == Answer::Unknown);
    }
    for (key, history) in histories {
        match linear::check(history) {
            Verdict::Linearizable => {}
            Verdict::Undecided => wrong.push(format!("{key}: too many possible orders to decide")),
            Verdict::Impossible { stuck_at } => wrong.push(not_linearizable(key, history, stuck_at)),
        }
    }
    wrong.extend(revisions_follow_time(histories));
    wrong.extend(one_revision_each(histories, watches, lists));
    for watched in watches {
        summary.events += watched.events.len();
        wrong.extend(nothing_missed(watched, histories));
        wrong.extend(lists_agree(watched, lists));
    }
    for pair in watches.windows(2) {
        wrong.extend(same_story(&pair[0], &pair[1]));
    }
    if wrong.is_empty() { Ok(summary) } else { Err(wrong) }
}

fn not_linearizable(key: &str, history: &[Operation], stuck_at: usize) -> String {
    let stuck = &history[stuck_at];
    let mut near: Vec<&Operation> =
        history.iter().filter(|o| o.invoked <= stuck.returned && (o.returned + 2_000_000 >= stuck.invoked)).collect();
    near.sort_by_key(|o| o.invoked);
    let first = near.len().saturating_sub(25);
    let lines: Vec<String> = near[first..]
        .iter()
        .map(|o| format!("    {:>10} {:>10}  {:?} -> {:?}", o.invoked, o.returned, o.call, o.answer))
        .collect();
    format!("{key}: no order explains {:?} -> {:?}\n{}", stuck.call, stuck.answer, lines.join("\n"))
}

/// A write that began after another had been acknowledged has the higher revision, over all objects.
fn revisions_follow_time(histories: &BTreeMap<String, Vec<Operation>>) -> Vec<String> {
    let mut writes: Vec<(u64, u64, u64, &str)> = Vec::new();
    for (key, history) in histories {
        for operation in history {
            if let Answer::Put(version) = operation.answer {
                writes.push((operation.invoked, operation.returned, version.revision, key));
            }
        }
    }
    let mut by_return = writes.clone();
    by_return.sort_by_key(|w| w.1);
    writes.sort_unstable();
    let mut acknowledged = by_return.iter().peekable();
    let mut highest = (0, "");
    let mut wrong = Vec::new();
    for (invoked, _, revision, key) in writes {
        while let Some(earlier) = acknowledged.next_if(|w| w.1 < invoked) {
            highest = highest.max((earlier.2, earlier.3));
        }
        if revision <= highest.0 {
            wrong.push(format!(
                "the write of {key} was given revision {revision} after {} had been acknowledged at {}",
                highest.1, highest.0
            ));
        }
    }
    wrong
}

/// A revision belongs to one write of one object, and a write to one revision, wherever they are seen.
fn one_revision_each(
    histories: &BTreeMap<String, Vec<Operation>>,
    watches: &[Watched],
    lists: &[Listed],
) -> Vec<String> {
    let mut write_of: BTreeMap<u64, (&str, Option<u64>)> = BTreeMap::new();
    let mut revision_of: BTreeMap<u64, u64> = BTreeMap::new();
    let mut wrong = Vec::new();
    let mut see = |key, id: Option<u64>, revision| {
        let write = *write_of.entry(revision).or_insert((key, id));
        if write != (key, id) {
            wrong.push(format!("revision {revision} is of {key} ({id:?}) and of {} ({:?})", write.0, write.1));
        }
        if let Some(id) = id {
            let known = *revision_of.entry(id).or_insert(revision);
            if known != revision {
                wrong.push(format!("write {id} of {key} has the revisions {known} and {revision}"));
            }
        }
    };
    for (key, history) in histories {
        for operation in history {
            if let Answer::Put(version) | Answer::Got(Some(version)) = operation.answer {
                see(key.as_str(), Some(version.id), version.revision);
            }
        }
    }
    for event in watches.iter().flat_map(|w| &w.events) {
        see(&event.key, event.id, event.revision);
    }
    for (key, version) in lists.iter().flat_map(|l| &l.objects) {
        see(key, Some(version.id), version.revision);
    }
    wrong
}

/// Revisions rise, and every acknowledged write that the watch has passed is among what it told.
fn nothing_missed(watched: &Watched, histories: &BTreeMap<String, Vec<Operation>>) -> Vec<String> {
    let mut wrong = Vec::new();
    let name = &watched.name;
    let mut last = watched.begin.0;
    for event in &watched.events {
        if event.revision <= last {
            wrong.push(format!("{name} went from revision {last} to {} ({})", event.revision, event.key));
        }
        last = event.revision;
    }
    let told: BTreeMap<u64, &Event> = watched.events.iter().map(|e| (e.revision, e)).collect();
    let mut deleted: BTreeMap<(&str, u64), u64> = BTreeMap::new();
    let mut state = watched.begin.1.clone();
    for event in &watched.events {
        let before = match event.id {
            Some(id) => state.insert(event.key.clone(), Version { id, revision: event.revision }),
            None => state.remove(&event.key),
        };
        match (before, event.id) {
            (Some(before), None) => drop(deleted.insert((&event.key, before.id), event.revision)),
            (None, None) => wrong.push(format!("{name} told of a deletion of {}, which was not there", event.key)),
            _ => {}
        }
    }
    for (key, history) in histories {
        for operation in history {
            match (&operation.call, &operation.answer) {
                (_, Answer::Put(version)) => {
                    let due = watched.begin.0 < version.revision && version.revision <= watched.reached;
                    let fits = |e: &&Event| e.key == *key && e.id == Some(version.id);
                    if due && !told.get(&version.revision).is_some_and(fits) {
                        wrong.push(format!("{name} missed the write of {key} at revision {}", version.revision));
                    }
                }
                (Call::Delete { from: Some(from) }, Answer::Deleted) => {
                    let due = watched.begin.0 < from.revision && from.revision < watched.reached;
                    if due && !deleted.contains_key(&(key.as_str(), from.id)) && state.get(key) != Some(from) {
                        wrong.push(format!("{name} missed the deletion of {key} as of revision {}", from.revision));
                    }
                }
                _ => {}
            }
        }
    }
    wrong
}

/// A list at a revision is what the changes up to it lead to.
fn lists_agree(watched: &Watched, lists: &[Listed]) -> Vec<String> {
    let mut lists: Vec<&Listed> =
        lists.iter().filter(|l| watched.begin.0 <= l.revision && l.revision <= watched.reached).collect();
    lists.sort_by_key(|l| l.revision);
    let mut state = watched.begin.1.clone();
    let mut events = watched.events.iter().peekable();
    let mut wrong = Vec::new();
    for list in lists {
        while let Some(event) = events.next_if(|e| e.revision <= list.revision) {
            match event.id {
                Some(id) => state.insert(event.key.clone(), Version { id, revision: event.revision }),
                None => state.remove(&event.key),
            };
        }
        if state == list.objects {
            continue;
        }
        let keys = state.keys().chain(list.objects.keys());
        let Some(key) = keys.into_iter().find(|k| state.get(*k) != list.objects.get(*k)) else { continue };
        wrong.push(format!(
            "the list at {} has {key} at {:?}; the changes that {} saw lead to {:?}",
            list.revision,
            list.objects.get(key),
            watched.name,
            state.get(key)
        ));
    }
    wrong
}

/// Two watches tell the same of the stretch that both have seen.
fn same_story(a: &Watched, b: &Watched) -> Vec<String> {
    let (from, to) = (a.begin.0.max(b.begin.0), a.reached.min(b.reached));
    let within = |w: &'_ Watched| -> Vec<Event> {
        w.events.iter().filter(|e| from < e.revision && e.revision <= to).cloned().collect()
    };
    let (left, right) = (within(a), within(b));
    let differs = left.iter().zip(&right).find(|(l, r)| l != r);
    match differs {
        Some((l, r)) => vec![format!("{} saw {l:?} where {} saw {r:?}", a.name, b.name)],
        None if left.len() != right.len() => {
            vec![format!("{} saw {} changes, {} saw {} in the same stretch", a.name, left.len(), b.name, right.len())]
        }
        None => Vec::new(),
    }
}
