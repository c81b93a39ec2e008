//! When a client that was refused should come again (upstream: `dropped_requests_tracker.go`): later, the more were refused.

use std::collections::VecDeque;

const SECONDS_MAX: u64 = 32;

#[derive(Debug)]
pub struct RetryAfter {
    seconds: u64,
    updated: u64,
    /// The present second, and how many were refused in it.
    now: (u64, u64),
    history: VecDeque<(u64, u64)>,
}

impl Default for RetryAfter {
    fn default() -> Self {
        Self { seconds: 1, updated: 0, now: (0, 0), history: VecDeque::new() }
    }
}

impl RetryAfter {
    /// Notes a refusal in this second, and says after how many the client should try again.
    pub fn refused(&mut self, second: u64) -> u64 {
        if self.now.0 != second {
            self.history.push_back(self.now);
            let kept = (2 * self.seconds).min(SECONDS_MAX);
            let newest = self.now.0;
            self.history.retain(|(at, _)| newest - at <= kept);
            self.now = (second, 0);
            self.update();
        }
        self.now.1 += 1;
        self.seconds
    }

    fn update(&mut self) {
        let second = self.now.0;
        let recent = self.history.iter().filter(|(at, _)| second.saturating_sub(*at) <= self.seconds);
        let refused: u64 = recent.map(|(_, count)| count).sum();
        if second.saturating_sub(self.updated) >= self.seconds && refused >= 3 * self.seconds {
            self.seconds = (2 * self.seconds).min(SECONDS_MAX);
            self.updated = second;
        } else if refused < self.seconds && self.seconds > 1 {
            self.seconds -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_asked_to_wait_longer_while_many_are_refused() {
        let mut tracker = RetryAfter::default();
        assert_eq!(tracker.refused(100), 1);
        let mut asked = 1;
        for second in 101..200 {
            (0..100).for_each(|_| asked = tracker.refused(second));
        }
        assert_eq!(asked, SECONDS_MAX);
        for second in 0..100 {
            asked = tracker.refused(1000 + 50 * second);
        }
        assert_eq!(asked, 1);
    }
}
