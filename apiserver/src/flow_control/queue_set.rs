//! Fair queuing of the requests of one priority level (upstream: `fairqueuing/queueset`). Decisions only: whoever calls says
//! what time it is, and waits.
//!
//! A flow is dealt a few of the queues, by shuffle sharding, and its requests go to the emptiest of these, so that a flow that
//! asks too much fills its own queues and hardly anybody else's whole hand. Queues get seats in turn by *virtual time*, which
//! advances as fast as a queue is served if all busy ones are served alike: the request goes first that would be finished
//! first.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

/// How long a request is thought to take before it is known.
const SERVICE_SECONDS: f64 = 0.003;

/// How requests wait. Without queues, they are refused instead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    pub queues: usize,
    /// Queues that each flow may use.
    pub hand: usize,
    /// Requests that wait in a queue at most.
    pub length_max: usize,
}

/// Tells the requests of a level apart.
pub type Ticket = u64;

/// Why a request is refused, in the words of upstream's metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    QueueFull,
    ConcurrencyLimit,
    TimeOut,
}

#[derive(Debug)]
struct Waiting {
    ticket: Ticket,
    seats: usize,
    arrival: f64,
}

#[derive(Debug)]
struct Running {
    queue: usize,
    seats: usize,
    since: Duration,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    running: usize,
    seats_in_use: usize,
    /// When, in virtual time, its next request begins.
    next: f64,
}

impl Queue {
    fn is_active(&self) -> bool {
        self.running > 0 || !self.waiting.is_empty()
    }

    /// Nothing begins before it has arrived, however little a queue has asked for so far.
    fn bound(&mut self) {
        if let Some(oldest) = self.waiting.front() {
            self.next = self.next.max(oldest.arrival);
        }
    }
}

#[derive(Debug, Default)]
pub struct QueueSet {
    shape: Shape,
    /// Seats that may be taken at once.
    limit: usize,
    /// Of a shape that had more, some may remain until they are empty.
    queues: Vec<Queue>,
    running: HashMap<Ticket, Running>,
    last_ticket: Ticket,
    enqueued: usize,
    robin: usize,
    seats_in_use: usize,
    seats_waiting: usize,
    waiting: usize,
    /// Virtual time, in seat-seconds, and the real time at which it was so.
    virtual_now: f64,
    now: Duration,
}

impl QueueSet {
    pub fn configure(&mut self, shape: Shape, limit: usize, now: Duration) {
        self.advance(now);
        self.shape = shape;
        self.limit = limit;
        if self.queues.len() < shape.queues {
            self.queues.resize_with(shape.queues, Queue::default);
        }
    }

    pub fn set_limit(&mut self, limit: usize, now: Duration) {
        self.configure(self.shape, limit, now);
    }

    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Seats that are taken or waited for.
    pub fn demand(&self) -> usize {
        self.seats_in_use + self.seats_waiting
    }

    /// Takes in a request of a flow, which then waits for [`QueueSet::dispatch`] to name it.
    pub fn arrive(&mut self, flow: u64, seats: usize, now: Duration) -> Result<Ticket, Reason> {
        self.advance(now);
        let at = match self.shape.queues {
            0 if !self.has_room(seats) => return Err(Reason::ConcurrencyLimit),
            0 => None,
            _ => Some(self.choose(flow)),
        };
        let ticket = self.last_ticket + 1;
        match at {
            // It needs no turn; the first that `dispatch` names is this one.
            None => {
                if self.queues.is_empty() {
                    self.queues.push(Queue::default());
                }
                self.enqueue(0, ticket, seats);
            }
            Some(at) => {
                if self.seats_in_use >= self.limit && self.queues[at].waiting.len() >= self.shape.length_max {
                    return Err(Reason::QueueFull);
                }
                self.enqueue(at, ticket, seats);
            }
        }
        self.last_ticket = ticket;
        Ok(ticket)
    }

    fn enqueue(&mut self, at: usize, ticket: Ticket, seats: usize) {
        let queue = &mut self.queues[at];
        if !queue.is_active() {
            queue.next = self.virtual_now;
        }
        queue.waiting.push_back(Waiting { ticket, seats, arrival: self.virtual_now });
        queue.bound();
        self.waiting += 1;
        self.seats_waiting += seats;
    }

    /// The next request that may begin, if there is one and there are seats for it.
    pub fn dispatch(&mut self, now: Duration) -> Option<Ticket> {
        self.advance(now);
        if self.waiting == 0 || self.seats_in_use >= self.limit.max(1) {
            return None;
        }
        let count = self.queues.len();
        let mut best: Option<(f64, usize)> = None;
        for step in 1..=count {
            let at = (self.robin + step) % count;
            let queue = &self.queues[at];
            if let Some(oldest) = queue.waiting.front() {
                let finish = queue.next + work(oldest.seats);
                if best.is_none_or(|(least, _)| finish < least) {
                    best = Some((finish, at));
                }
            }
        }
        let (_, at) = best?;
        let seats = self.queues[at].waiting.front()?.seats;
        // A wide request at the head of the line waits until it fits, rather than be overtaken for ever.
        if !self.has_room(seats) {
            return None;
        }
        self.robin = at;
        let queue = &mut self.queues[at];
        let next = queue.waiting.pop_front()?;
        queue.running += 1;
        queue.seats_in_use += seats;
        queue.next += work(seats);
        queue.bound();
        self.waiting -= 1;
        self.seats_waiting -= seats;
        self.seats_in_use += seats;
        self.running.insert(next.ticket, Running { queue: at, seats, since: now });
        Some(next.ticket)
    }

    /// Takes a request out of its queue; false if it does not wait.
    pub fn give_up(&mut self, ticket: Ticket, now: Duration) -> bool {
        if self.running.contains_key(&ticket) {
            return false;
        }
        self.advance(now);
        for queue in &mut self.queues {
            if let Some(at) = queue.waiting.iter().position(|w| w.ticket == ticket) {
                let seats = queue.waiting.remove(at).map_or(0, |w| w.seats);
                queue.bound();
                self.waiting -= 1;
                self.seats_waiting -= seats;
                return true;
            }
        }
        false
    }

    /// Frees the seats of a request that ran.
    pub fn finish(&mut self, ticket: Ticket, now: Duration) {
        self.advance(now);
        let Some(running) = self.running.remove(&ticket) else { return };
        self.seats_in_use -= running.seats;
        if let Some(queue) = self.queues.get_mut(running.queue) {
            queue.running -= 1;
            queue.seats_in_use -= running.seats;
            // What it took instead of what was expected.
            let took = now.saturating_sub(running.since).as_secs_f64();
            queue.next -= running.seats as f64 * (SERVICE_SECONDS - took);
            queue.bound();
        }
    }

    /// A request wider than the limit runs alone.
    fn has_room(&self, seats: usize) -> bool {
        if seats > self.limit { self.running.is_empty() } else { self.seats_in_use + seats <= self.limit }
    }

    /// The queue of the flow's hand where the least work waits.
    fn choose(&mut self, flow: u64) -> usize {
        let hand = deal(flow, self.shape.queues, self.shape.hand);
        let offset = self.enqueued % hand.len();
        self.enqueued = self.enqueued.wrapping_add(1);
        let work = |at: &usize| self.queues[*at].waiting.iter().map(|w| w.seats).sum::<usize>();
        let turn = hand[offset..].iter().chain(&hand[..offset]);
        turn.copied().min_by_key(work).unwrap_or(0)
    }

    fn advance(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.now).as_secs_f64();
        self.now = self.now.max(now);
        let active = self.queues.iter().filter(|q| q.is_active()).count();
        if active > 0 {
            self.virtual_now += passed * self.demand().min(self.limit) as f64 / active as f64;
        }
    }
}

/// What a request is expected to use, in seat-seconds.
fn work(seats: usize) -> f64 {
    seats as f64 * SERVICE_SECONDS
}

/// Deals so many different cards of a deck, all that are needed of a hash's digits in mixed radix (upstream:
/// `shufflesharding`).
fn deal(mut hash: u64, deck: usize, hand: usize) -> Vec<usize> {
    let hand = hand.clamp(1, deck.max(1));
    // In ascending order, to find those that are dealt already.
    let mut dealt: Vec<usize> = Vec::with_capacity(hand);
    for taken in 0..hand {
        let left = (deck - taken).max(1) as u64;
        let mut card = (hash % left) as usize;
        hash /= left;
        let mut place = 0;
        while place < dealt.len() && dealt[place] <= card {
            card += 1;
            place += 1;
        }
        dealt.insert(place, card);
    }
    dealt
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const QUEUES: Shape = Shape { queues: 8, hand: 2, length_max: 3 };

    fn set(shape: Shape, limit: usize) -> QueueSet {
        let mut set = QueueSet::default();
        set.configure(shape, limit, Duration::ZERO);
        set
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn run(set: &mut QueueSet, now: Duration) -> Vec<Ticket> {
        std::iter::from_fn(|| set.dispatch(now)).collect()
    }

    #[test]
    fn a_hand_has_different_cards_and_all_are_dealt() {
        let mut seen = BTreeSet::new();
        for hash in 0..2000_u64 {
            let hand = deal(hash.wrapping_mul(0x9E37_79B9_7F4A_7C15), 8, 3);
            assert_eq!(hand.iter().collect::<BTreeSet<_>>().len(), 3);
            assert!(hand.iter().all(|card| *card < 8));
            seen.insert(hand);
        }
        assert_eq!(seen.len(), 56, "there are so many hands");
    }

    #[test]
    fn without_queues_what_finds_no_seat_is_refused() {
        let mut set = set(Shape::default(), 2);
        let one = set.arrive(1, 1, ms(0)).unwrap();
        assert_eq!(run(&mut set, ms(0)), [one]);
        let two = set.arrive(1, 1, ms(0)).unwrap();
        assert_eq!(run(&mut set, ms(0)), [two]);
        assert_eq!(set.arrive(2, 1, ms(1)), Err(Reason::ConcurrencyLimit));
        set.finish(one, ms(2));
        assert!(set.arrive(2, 1, ms(2)).is_ok());
    }

    #[test]
    fn a_full_hand_is_refused_and_others_are_not() {
        let mut set = set(QUEUES, 1);
        let mut kept = 0;
        for _ in 0..20 {
            kept += usize::from(set.arrive(7, 1, ms(0)).is_ok());
            set.dispatch(ms(0));
        }
        // One runs, and both queues of the hand are full.
        assert_eq!(kept, 1 + 2 * 3);
        assert_eq!(set.arrive(7, 1, ms(0)), Err(Reason::QueueFull));
        let other = (0..100).find(|flow| deal(*flow, 8, 2).iter().all(|q| !deal(7, 8, 2).contains(q))).unwrap();
        assert!(set.arrive(other, 1, ms(0)).is_ok());
    }

    #[test]
    fn flows_take_turns_however_many_requests_they_send() {
        let shape = Shape { queues: 2, hand: 1, length_max: 100 };
        let mut set = set(shape, 1);
        let greedy: Vec<Ticket> = (0..50).map(|_| set.arrive(0, 1, ms(0)).unwrap()).collect();
        let modest: Vec<Ticket> = (0..5).map(|_| set.arrive(1, 1, ms(0)).unwrap()).collect();
        let (mut now, mut order) = (0, Vec::new());
        while let Some(next) = set.dispatch(ms(now)) {
            order.push(next);
            now += 10;
            set.finish(next, ms(now));
        }
        assert_eq!(order.len(), 55);
        let place = |ticket: &Ticket| order.iter().position(|t| t == ticket).unwrap();
        assert!(modest.iter().all(|ticket| place(ticket) <= 10), "{order:?}");
        // Within a flow the order is that of arrival.
        assert!(greedy.windows(2).all(|pair| place(&pair[0]) < place(&pair[1])));
    }

    #[test]
    fn a_wide_request_waits_for_its_seats_and_then_has_them() {
        let mut set = set(QUEUES, 4);
        let narrow: Vec<Ticket> = (0..3).map(|flow| set.arrive(flow, 1, ms(0)).unwrap()).collect();
        assert_eq!(run(&mut set, ms(0)).len(), 3);
        let wide = set.arrive(50, 4, ms(0)).unwrap();
        assert!(run(&mut set, ms(0)).is_empty());
        assert_eq!(set.demand(), 7);
        narrow.iter().for_each(|ticket| set.finish(*ticket, ms(5)));
        assert_eq!(run(&mut set, ms(5)), [wide]);
        set.finish(wide, ms(6));
        // Wider than all seats there are: alone, but not never.
        let huge = set.arrive(50, 9, ms(6)).unwrap();
        assert_eq!(run(&mut set, ms(6)), [huge]);
    }

    #[test]
    fn who_gives_up_leaves_nothing_behind() {
        let mut set = set(QUEUES, 1);
        let first = set.arrive(1, 1, ms(0)).unwrap();
        assert_eq!(run(&mut set, ms(0)), [first]);
        let second = set.arrive(1, 1, ms(0)).unwrap();
        assert!(!set.give_up(first, ms(1)), "it runs");
        assert!(set.give_up(second, ms(1)));
        assert!(!set.give_up(second, ms(1)));
        set.finish(first, ms(2));
        assert_eq!((set.demand(), set.dispatch(ms(2))), (0, None));
    }
}
