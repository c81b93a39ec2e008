//! The clients of a fault run: they create, update, delete and read a few objects at once, each expecting what it last saw,
//! and record every call and answer. They know nothing of the faults.

use super::history::{Answer, Call, History, Operation, Version};
use anyhow::Result;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Objects that are fought over at a time.
const KEYS: u64 = 6;
/// What a client leaves between two calls, at most.
const PAUSE_MS_MAX: u64 = 12;

/// Something that keeps objects: a server, or what a test puts in its place.
pub trait Register: Send + Sync + 'static {
    /// An error is a finding (an object served torn, a refusal that no fault explains), not a lost answer.
    fn call(&self, key: &str, call: &Call) -> impl Future<Output = Result<Answer>> + Send;
}

#[derive(Default)]
pub struct Shared {
    pub stop: AtomicBool,
    /// Moves on now and then: old objects are left alone, so that no history grows without end.
    pub epoch: AtomicU64,
    pub ids: AtomicU64,
}

/// Works until told to stop. Every call goes to one of the registers.
pub async fn work<R: Register>(
    registers: Vec<Arc<R>>,
    history: Arc<History>,
    shared: Arc<Shared>,
    seed: u64,
) -> Result<()> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut known: HashMap<String, Version> = HashMap::new();
    let mut epoch = 0;
    while !shared.stop.load(Ordering::SeqCst) {
        let now = shared.epoch.load(Ordering::SeqCst);
        if now != epoch {
            (epoch, known) = (now, HashMap::new());
        }
        let key = format!("object-{epoch}-{}", rng.random_range(0..KEYS));
        let register = &registers[rng.random_range(0..registers.len())];
        let call = draw(&mut rng, known.get(&key).copied(), &shared.ids);
        let answer = recorded(&**register, &history, &key, call.clone()).await?;
        match (&call, &answer) {
            (_, Answer::Got(Some(version)) | Answer::Put(version)) => drop(known.insert(key, *version)),
            // Now and then what is known to be old is expected once more.
            (_, Answer::Conflict) if rng.random_ratio(1, 4) => {}
            _ => drop(known.remove(&key)),
        }
        let pause =
            if matches!(answer, Answer::Unknown | Answer::NeverSent) { 50 } else { rng.random_range(0..=PAUSE_MS_MAX) };
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
    Ok(())
}

fn draw(rng: &mut StdRng, known: Option<Version>, ids: &AtomicU64) -> Call {
    let id = || ids.fetch_add(1, Ordering::SeqCst) + 1;
    match (known, rng.random_range(0..100)) {
        (_, 0..25) => Call::Get,
        (Some(from), 25..75) => Call::Update { from, to: id() },
        (Some(from), 75..90) => Call::Delete { from: Some(from) },
        (_, 90..94) => Call::Delete { from: None },
        (None, 25..45) => Call::Get,
        _ => Call::Create(id()),
    }
}

/// Calls, and writes down what was asked, what came back, and when.
pub async fn recorded<R: Register>(register: &R, history: &History, key: &str, call: Call) -> Result<Answer> {
    let invoked = history.now();
    let answer = register.call(key, &call).await?;
    if answer != Answer::NeverSent {
        let operation = Operation { call, answer: answer.clone(), invoked, returned: history.now() };
        history.record(key, operation);
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    //! The checks must be able to fail: a register that does one thing wrong now and then must be found out.

    use super::super::checks::{self, Event, Watched};
    use super::*;
    use std::collections::BTreeMap;
    use std::sync::Mutex;

    #[derive(Clone, Copy, PartialEq)]
    enum Flaw {
        None,
        /// Acknowledges some writes and forgets them.
        LosesWrites,
        /// Serves some reads from what was.
        ReadsThePast,
        /// Tells some calls that they failed although they were carried out.
        DeniesWhatItDid,
        /// Carries some writes out without looking at what they expect.
        IgnoresExpectations,
        /// Leaves some changes out of its watch.
        SkipsEvents,
        /// Tells some changes twice.
        RepeatsEvents,
        /// Gives some revisions twice.
        ReusesRevisions,
    }

    struct Shelf {
        flaw: Flaw,
        state: Mutex<State>,
    }

    #[derive(Default)]
    struct State {
        revision: u64,
        calls: u64,
        objects: BTreeMap<String, Version>,
        before: BTreeMap<String, Version>,
        watched: Watched,
    }

    impl State {
        fn write(&mut self, key: &str, id: Option<u64>, flaw: Option<Flaw>) -> u64 {
            self.revision += u64::from(flaw != Some(Flaw::ReusesRevisions));
            let revision = self.revision;
            if flaw == Some(Flaw::LosesWrites) {
                return revision;
            }
            let old = match id {
                Some(id) => self.objects.insert(key.to_owned(), Version { id, revision }),
                None => self.objects.remove(key),
            };
            match old {
                Some(old) => drop(self.before.insert(key.to_owned(), old)),
                None => drop(self.before.remove(key)),
            }
            let event = Event { revision, key: key.to_owned(), id };
            let times = match flaw {
                Some(Flaw::SkipsEvents) => 0,
                Some(Flaw::RepeatsEvents) => 2,
                _ => 1,
            };
            self.watched.events.extend(std::iter::repeat_n(event, times));
            self.watched.reached = revision;
            revision
        }
    }

    impl Register for Shelf {
        async fn call(&self, key: &str, call: &Call) -> Result<Answer> {
            tokio::task::yield_now().await;
            let answer = self.carry_out(key, call);
            tokio::task::yield_now().await;
            Ok(answer)
        }
    }

    impl Shelf {
        fn carry_out(&self, key: &str, call: &Call) -> Answer {
            let mut state = self.state.lock().unwrap();
            state.calls += 1;
            let flaw = state.calls.is_multiple_of(31).then_some(self.flaw);
            let now = state.objects.get(key).copied();
            let holds = |from: &Version| now == Some(*from) || flaw == Some(Flaw::IgnoresExpectations);
            let answer = match call {
                Call::Get if flaw == Some(Flaw::ReadsThePast) => Answer::Got(state.before.get(key).copied()),
                Call::Get => Answer::Got(now),
                Call::Create(_) if now.is_some() => Answer::Exists,
                Call::Create(id) => Answer::Put(Version { id: *id, revision: state.write(key, Some(*id), flaw) }),
                Call::Update { .. } | Call::Delete { .. } if now.is_none() => Answer::Absent,
                Call::Update { from, to } if holds(from) => {
                    Answer::Put(Version { id: *to, revision: state.write(key, Some(*to), flaw) })
                }
                Call::Delete { from } if from.as_ref().is_none_or(holds) => {
                    state.write(key, None, flaw);
                    Answer::Deleted
                }
                Call::Update { .. } | Call::Delete { .. } => Answer::Conflict,
            };
            match (answer, call) {
                (Answer::Put(_), Call::Create(_)) if flaw == Some(Flaw::DeniesWhatItDid) => Answer::Exists,
                (Answer::Put(_), _) if flaw == Some(Flaw::DeniesWhatItDid) => Answer::Conflict,
                (answer, _) => answer,
            }
        }
    }

    async fn found_wrong(flaw: Flaw) -> Vec<String> {
        let shelf = Arc::new(Shelf { flaw, state: Mutex::default() });
        let (history, shared) = (Arc::new(History::new()), Arc::new(Shared::default()));
        let clients: Vec<_> =
            (0..6).map(|seed| tokio::spawn(work(vec![shelf.clone()], history.clone(), shared.clone(), seed))).collect();
        // By calls, not by time: a busy machine takes longer, but must have done as much.
        while shelf.state.lock().unwrap().calls < 1_500 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        shared.stop.store(true, Ordering::SeqCst);
        for client in clients {
            client.await.unwrap().unwrap();
        }
        for key in 0..KEYS {
            recorded(&*shelf, &history, &format!("object-0-{key}"), Call::Get).await.unwrap();
        }
        let watched = shelf.state.lock().unwrap().watched.clone();
        let histories = history.take();
        checks::check(&histories, &[watched], &[]).err().unwrap_or_default()
    }

    #[tokio::test]
    async fn a_sound_register_passes() {
        assert_eq!(found_wrong(Flaw::None).await, Vec::<String>::new());
    }

    #[tokio::test]
    async fn every_flaw_is_found() {
        for (flaw, said) in [
            (Flaw::LosesWrites, "no order explains"),
            (Flaw::ReadsThePast, "no order explains"),
            (Flaw::DeniesWhatItDid, "no order explains"),
            (Flaw::IgnoresExpectations, "no order explains"),
            (Flaw::SkipsEvents, "missed"),
            (Flaw::RepeatsEvents, "went from revision"),
            (Flaw::ReusesRevisions, "revision"),
        ] {
            let wrong = found_wrong(flaw).await;
            assert!(wrong.iter().any(|w| w.contains(said)), "{said} was expected, and found was {wrong:?}");
        }
    }
}
