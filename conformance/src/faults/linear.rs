//! Linearizability: could the history of one object have come from a register that does one thing at a time, each at some
//! moment between its call and its answer? (Wing and Gong's search with Lowe's memory of configurations, as in Porcupine.)
//!
//! A write whose answer was lost may take effect at any time after its call, or never: it is tried, but need not be placed.

use super::history::{Answer, Call, Operation};
use std::collections::{HashMap, HashSet};

/// Configurations looked at before the search gives up; a history of this kind needs some thousands.
const STEPS_MAX: usize = 2_000_000;

/// What the register holds: the id of a write, or nothing.
type State = Option<u64>;

#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Linearizable,
    /// No order explains it. The longest explanation leaves this operation out.
    Impossible {
        stuck_at: usize,
    },
    /// Too many possibilities.
    Undecided,
}

/// The state after the operation, if the answer is possible in `state`.
fn step(state: State, operation: &Operation) -> Option<State> {
    let unknown = operation.answer == Answer::Unknown;
    match (&operation.call, &operation.answer) {
        (Call::Get, Answer::Got(found)) => (found.map(|v| v.id) == state).then_some(state),
        (Call::Create(id), Answer::Put(_) | Answer::Unknown) => state.is_none().then_some(Some(*id)),
        (Call::Create(_), Answer::Exists) => state.is_some().then_some(state),
        (Call::Update { from, to }, Answer::Put(_) | Answer::Unknown) => (state == Some(from.id)).then_some(Some(*to)),
        (Call::Update { from, .. } | Call::Delete { from: Some(from) }, Answer::Conflict) => {
            (state.is_some() && state != Some(from.id)).then_some(state)
        }
        (Call::Delete { from: Some(from) }, Answer::Deleted | Answer::Unknown) => {
            (state == Some(from.id)).then_some(None)
        }
        (Call::Delete { from: None }, Answer::Deleted | Answer::Unknown) => state.is_some().then_some(None),
        (Call::Update { .. } | Call::Delete { .. }, Answer::Absent) => state.is_none().then_some(state),
        // A read without an answer says nothing.
        _ if unknown => None,
        _ => None,
    }
}

/// Calls and answers in the order of time, as a list from which operations are taken out and put back.
struct Events {
    /// Operation, and whether this is its call.
    events: Vec<(usize, bool)>,
    next: Vec<usize>,
    previous: Vec<usize>,
    call_of: Vec<usize>,
    return_of: Vec<Option<usize>>,
}

impl Events {
    /// Place 0 is the head, before the first event.
    fn new(operations: &[Operation]) -> Events {
        let mut times: Vec<(u64, bool, usize)> = Vec::with_capacity(operations.len() * 2);
        for (index, operation) in operations.iter().enumerate() {
            if operation.answer == Answer::Unknown && operation.call == Call::Get {
                continue;
            }
            // At the same microsecond calls come first: the two may then have been at once.
            times.push((operation.invoked, false, index));
            if operation.answer != Answer::Unknown {
                times.push((operation.returned, true, index));
            }
        }
        times.sort_unstable();
        let mut events = vec![(usize::MAX, false)];
        let (mut call_of, mut return_of) = (vec![0; operations.len()], vec![None; operations.len()]);
        for (_, is_return, index) in times {
            match is_return {
                false => call_of[index] = events.len(),
                true => return_of[index] = Some(events.len()),
            }
            events.push((index, !is_return));
        }
        let count = events.len();
        Events {
            next: (1..=count).collect(),
            previous: (0..count).map(|i| i.saturating_sub(1)).collect(),
            events,
            call_of,
            return_of,
        }
    }

    fn unlink(&mut self, place: usize) {
        let (before, after) = (self.previous[place], self.next[place]);
        self.next[before] = after;
        if after < self.events.len() {
            self.previous[after] = before;
        }
    }

    fn relink(&mut self, place: usize) {
        let (before, after) = (self.previous[place], self.next[place]);
        self.next[before] = place;
        if after < self.events.len() {
            self.previous[after] = place;
        }
    }

    fn take_out(&mut self, operation: usize) {
        self.unlink(self.call_of[operation]);
        if let Some(place) = self.return_of[operation] {
            self.unlink(place);
        }
    }

    fn put_back(&mut self, operation: usize) {
        if let Some(place) = self.return_of[operation] {
            self.relink(place);
        }
        self.relink(self.call_of[operation]);
    }
}

/// For each write without an answer the one before it that would do the same, if there is one: of several, the one that was
/// called first can do whatever a later one can, so that only their number matters and not which of them took place.
fn likes(operations: &[Operation]) -> Vec<Option<usize>> {
    let mut observed: HashSet<u64> = HashSet::new();
    for operation in operations {
        if let Answer::Got(Some(version)) | Answer::Put(version) = &operation.answer {
            observed.insert(version.id);
        }
        if let Call::Update { from, .. } | Call::Delete { from: Some(from) } = &operation.call {
            observed.insert(from.id);
        }
    }
    let mut by_time: Vec<usize> = (0..operations.len()).collect();
    by_time.sort_by_key(|i| operations[*i].invoked);
    let mut last: HashMap<(u8, Option<u64>), usize> = HashMap::new();
    let mut like = vec![None; operations.len()];
    for index in by_time {
        let operation = &operations[index];
        if operation.answer != Answer::Unknown {
            continue;
        }
        let kind = match &operation.call {
            Call::Create(id) if !observed.contains(id) => (0, None),
            Call::Update { from, to } if !observed.contains(to) => (1, Some(from.id)),
            Call::Delete { from } => (2, from.map(|f| f.id)),
            _ => continue,
        };
        like[index] = last.insert(kind, index);
    }
    like
}

pub fn check(operations: &[Operation]) -> Verdict {
    let mut events = Events::new(operations);
    let like = likes(operations);
    let mut left = events.return_of.iter().flatten().count();
    let mut done: Vec<u64> = vec![0; operations.len().div_ceil(64)];
    let mut seen: HashSet<(Vec<u64>, State)> = HashSet::new();
    let mut path: Vec<(usize, State)> = Vec::new();
    let mut state: State = None;
    let mut place = events.next[0];
    let (mut deepest, mut stuck_at) = (0, 0);
    while left > 0 {
        let (operation, is_call) = match events.events.get(place) {
            Some(event) => *event,
            // Only writes without an answer come after the last answer, and an answer stops the search before.
            None => (usize::MAX, false),
        };
        if is_call {
            let in_turn = like[operation].is_none_or(|before| done[before / 64] & (1 << (before % 64)) != 0);
            if let Some(after) = step(state, &operations[operation]).filter(|_| in_turn) {
                done[operation / 64] |= 1 << (operation % 64);
                if seen.insert((done.clone(), after)) {
                    if seen.len() > STEPS_MAX {
                        return Verdict::Undecided;
                    }
                    path.push((operation, state));
                    state = after;
                    left -= usize::from(events.return_of[operation].is_some());
                    events.take_out(operation);
                    place = events.next[0];
                    continue;
                }
                done[operation / 64] &= !(1 << (operation % 64));
            }
            place = events.next[place];
            continue;
        }
        // This answer came although its operation has found no place: take the last choice back.
        if operation != usize::MAX && path.len() >= deepest {
            (deepest, stuck_at) = (path.len(), operation);
        }
        let Some((operation, before)) = path.pop() else { return Verdict::Impossible { stuck_at } };
        events.put_back(operation);
        left += usize::from(events.return_of[operation].is_some());
        done[operation / 64] &= !(1 << (operation % 64));
        state = before;
        place = events.next[events.call_of[operation]];
    }
    Verdict::Linearizable
}

#[cfg(test)]
mod tests {
    use super::super::history::Version;
    use super::*;

    fn v(id: u64) -> Version {
        Version { id, revision: id }
    }

    fn op(call: Call, answer: Answer, invoked: u64, returned: u64) -> Operation {
        Operation { call, answer, invoked, returned }
    }

    fn create(id: u64, invoked: u64, returned: u64) -> Operation {
        op(Call::Create(id), Answer::Put(v(id)), invoked, returned)
    }

    fn update(from: u64, to: u64, invoked: u64, returned: u64) -> Operation {
        op(Call::Update { from: v(from), to }, Answer::Put(v(to)), invoked, returned)
    }

    fn get(id: Option<u64>, invoked: u64, returned: u64) -> Operation {
        op(Call::Get, Answer::Got(id.map(v)), invoked, returned)
    }

    fn lost(call: Call, invoked: u64) -> Operation {
        op(call, Answer::Unknown, invoked, invoked)
    }

    #[track_caller]
    fn check_history(history: &[Operation], linearizable: bool) {
        assert_eq!(check(history) == Verdict::Linearizable, linearizable, "{:?}", check(history));
    }

    #[test]
    fn one_thing_after_the_other() {
        check_history(&[], true);
        check_history(&[get(None, 0, 1), create(1, 2, 3), get(Some(1), 4, 5), update(1, 2, 6, 7)], true);
        check_history(&[create(1, 0, 1), get(None, 2, 3)], false);
        check_history(&[create(1, 0, 1), update(1, 2, 2, 3), get(Some(1), 4, 5)], false);
        check_history(&[create(1, 0, 1), create(2, 2, 3)], false);
    }

    #[test]
    fn what_is_at_once_may_come_in_any_order() {
        check_history(&[create(1, 0, 10), get(None, 1, 2), get(Some(1), 3, 4)], true);
        check_history(&[create(1, 0, 10), get(Some(1), 1, 2), get(None, 3, 4)], false);
        check_history(&[create(1, 0, 1), update(1, 2, 2, 9), update(2, 3, 3, 8), get(Some(3), 10, 11)], true);
        check_history(&[create(1, 0, 1), update(1, 2, 2, 9), update(1, 3, 3, 8)], false);
    }

    #[test]
    fn a_lost_answer_is_a_write_at_any_later_time_or_none() {
        let unknown = || lost(Call::Create(1), 0);
        check_history(&[unknown(), get(None, 5, 6), get(Some(1), 7, 8)], true);
        check_history(&[unknown(), get(None, 5, 6), get(None, 7, 8)], true);
        check_history(&[unknown(), get(Some(1), 5, 6), get(None, 7, 8)], false);
        check_history(&[get(Some(1), 0, 1), lost(Call::Create(1), 2)], false);
        let delete = lost(Call::Delete { from: Some(v(1)) }, 2);
        check_history(&[create(1, 0, 1), delete.clone(), get(Some(1), 3, 4), create(2, 5, 6)], true);
        check_history(&[create(1, 0, 1), delete, create(2, 5, 6), get(Some(1), 7, 8)], false);
    }

    #[test]
    fn refusals_must_be_true() {
        let conflict = |from| op(Call::Update { from: v(from), to: 9 }, Answer::Conflict, 4, 5);
        check_history(&[create(1, 0, 1), update(1, 2, 2, 3), conflict(1)], true);
        check_history(&[create(1, 0, 1), conflict(1)], false);
        check_history(&[create(1, 0, 1), op(Call::Create(2), Answer::Exists, 2, 3)], true);
        check_history(&[op(Call::Create(2), Answer::Exists, 2, 3)], false);
        check_history(&[create(1, 0, 1), op(Call::Delete { from: None }, Answer::Absent, 2, 3)], false);
    }

    /// A long history with many writes of unknown outcome is decided quickly.
    #[test]
    fn a_long_history_is_decided() {
        let mut history = vec![create(1, 0, 1)];
        for i in 1..2_000 {
            let time = i * 10;
            history.push(update(i, i + 1, time, time + 5));
            if i % 100 == 0 {
                history.push(lost(Call::Update { from: v(i + 1), to: 100_000 + i }, time + 6));
                history.push(lost(Call::Delete { from: Some(v(i)) }, time + 1));
            }
            history.push(get(Some(i + 1), time + 6, time + 25));
        }
        check_history(&history, true);
        history.push(get(Some(7), 100_000, 100_001));
        check_history(&history, false);
        // A server that was away for long: nobody knows which of these took place.
        let mut history = vec![create(1, 0, 1)];
        for i in 0..100 {
            history.push(lost(Call::Create(1_000 + i), 2));
            history.push(lost(Call::Delete { from: None }, 2));
            history.push(lost(Call::Update { from: v(1), to: 2_000 + i }, 2));
        }
        history.extend((0..30).map(|i| op(Call::Create(3_000 + i), Answer::Exists, 10 + i, 11 + i)));
        history.push(get(Some(1_099), 100, 101));
        check_history(&history, true);
        history.push(get(Some(7), 102, 103));
        check_history(&history, false);
    }
}
