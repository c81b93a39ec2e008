//! How the server's seats are shared by its priority levels (upstream: `apf_controller.go` and `conc_alloc.go`).
//!
//! Each level has a nominal share. It lends a part of what it does not use to those who could use more; every ten seconds the
//! seats are dealt anew by what the levels have wanted lately.

use std::time::Duration;

/// What a level may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    pub nominal: usize,
    /// What it keeps whatever others want.
    pub least: usize,
    pub most: usize,
}

/// The bounds of a level of so many shares out of all of them.
pub fn bounds(seats: usize, shares: u64, of: u64, lendable_percent: u64, borrowing_percent: Option<u64>) -> Bounds {
    let nominal = (seats as f64 * shares as f64 / of.max(1) as f64).ceil() as usize;
    let part = |percent: u64| (nominal as f64 * percent as f64 / 100.0).round() as usize;
    let most = borrowing_percent.map_or(seats.max(nominal), |percent| nominal + part(percent));
    Bounds { nominal, least: nominal.saturating_sub(part(lendable_percent)), most }
}

/// How many seats a level wanted since it was last asked, and before.
#[derive(Clone, Debug, Default)]
pub struct Demand {
    since: Duration,
    at: Duration,
    now: f64,
    sum: f64,
    squares: f64,
    high: f64,
    smoothed: f64,
}

/// How much of the past is forgotten at a time (upstream: `seatDemandSmoothingCoefficient`).
const KEPT: f64 = 0.977;

impl Demand {
    pub fn set(&mut self, seats: usize, at: Duration) {
        self.pass(at);
        self.now = seats as f64;
        self.high = self.high.max(self.now);
    }

    fn pass(&mut self, at: Duration) {
        let passed = at.saturating_sub(self.at).as_secs_f64();
        self.at = self.at.max(at);
        self.sum += passed * self.now;
        self.squares += passed * self.now * self.now;
    }

    /// The most that was wanted, and a mean of it that rises at once and falls slowly. A new period begins.
    pub fn look(&mut self, at: Duration) -> (usize, f64) {
        self.pass(at);
        let length = at.saturating_sub(self.since).as_secs_f64();
        let mean = if length > 0.0 { self.sum / length } else { self.now };
        let variance = if length > 0.0 { (self.squares / length - mean * mean).max(0.0) } else { 0.0 };
        let envelope = mean + variance.sqrt();
        self.smoothed = envelope.max(KEPT * self.smoothed + (1.0 - KEPT) * envelope);
        let high = self.high as usize;
        (self.since, self.sum, self.squares, self.high) = (at, 0.0, 0.0, self.now);
        (high, self.smoothed)
    }
}

/// Deals `seats` to levels by their bounds and what they wanted, as [`Demand::look`] says it; `exempt` of them are taken by
/// those who are not limited.
pub fn share(seats: usize, exempt: usize, levels: &[(Bounds, (usize, f64))]) -> Vec<usize> {
    let left = seats.saturating_sub(exempt);
    let least: usize = levels.iter().map(|(bounds, _)| bounds.least).sum();
    let wanted = |(bounds, (high, _)): &(Bounds, (usize, f64))| bounds.least.max(bounds.nominal.min(*high));
    let wanted_by_all: usize = levels.iter().map(wanted).sum();
    if left <= least {
        return levels.iter().map(|(bounds, _)| bounds.least).collect();
    }
    if left <= wanted_by_all {
        let part = (left - least) as f64 / (wanted_by_all - least) as f64;
        let given =
            |level| bounds_of(level).least + ((wanted(level) - bounds_of(level).least) as f64 * part).round() as usize;
        return levels.iter().map(given).collect();
    }
    // What each gets at a proportion of its target; the sum grows with the proportion.
    let given = |level: &(Bounds, (usize, f64)), proportion: f64| {
        let low = wanted(level) as f64;
        let target = level.1.1.max(low).max(0.001);
        (proportion * target).clamp(low, (level.0.most as f64).max(low))
    };
    let sum = |proportion: f64| levels.iter().map(|level| given(level, proportion)).sum::<f64>();
    let (mut low, mut high) = (0.0, 1.0);
    while sum(high) < seats as f64 && high < 1e9 {
        high *= 2.0;
    }
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        if sum(middle) < seats as f64 { low = middle } else { high = middle }
    }
    levels.iter().map(|level| given(level, high).round() as usize).collect()
}

fn bounds_of(level: &(Bounds, (usize, f64))) -> Bounds {
    level.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_nominal_and_partly_lent() {
        assert_eq!(bounds(600, 30, 245, 33, None), Bounds { nominal: 74, least: 50, most: 600 });
        assert_eq!(bounds(600, 5, 245, 0, Some(100)), Bounds { nominal: 13, least: 13, most: 26 });
    }

    #[test]
    fn demand_rises_at_once_and_falls_slowly() {
        let s = Duration::from_secs;
        let mut demand = Demand::default();
        demand.set(10, s(0));
        demand.set(0, s(5));
        let (high, smoothed) = demand.look(s(10));
        assert_eq!((high, smoothed.round()), (10, 10.0));
        let (high, later) = demand.look(s(20));
        assert_eq!(high, 0);
        assert!(later < smoothed && later > 0.9 * smoothed);
    }

    #[test]
    fn idle_seats_go_to_those_who_want_them_and_come_back() {
        let bounds = [bounds(100, 50, 100, 50, None), bounds(100, 50, 100, 50, None)];
        let busy = (90, 90.0);
        // One is idle: it keeps half of its share.
        let shares = share(100, 0, &[(bounds[0], busy), (bounds[1], (0, 0.0))]);
        assert_eq!(shares, [75, 25]);
        // Both are busy: each has its own.
        assert_eq!(share(100, 0, &[(bounds[0], busy), (bounds[1], busy)]), [50, 50]);
        // Nobody wants anything: by target, which is what they keep.
        assert_eq!(share(100, 0, &[(bounds[0], (0, 0.0)), (bounds[1], (0, 0.0))]), [50, 50]);
        // Those who are not limited take most: what is kept remains.
        assert_eq!(share(100, 60, &[(bounds[0], busy), (bounds[1], busy)]), [25, 25]);
        assert_eq!(share(100, 20, &[(bounds[0], busy), (bounds[1], busy)]), [40, 40]);
    }
}
