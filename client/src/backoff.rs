//! Exponential back-off with jitter, the counterpart of apimachinery's `wait.Backoff`.

use std::time::Duration;

use rand::Rng;

/// Grows the delay between attempts from `initial` by `factor` up to `cap`, each lengthened by up to `jitter` times itself.
#[derive(Clone, Debug)]
pub struct Backoff {
    initial: Duration,
    cap: Duration,
    factor: f64,
    jitter: f64,
    next: Duration,
}

impl Backoff {
    pub fn new(initial: Duration, cap: Duration) -> Self {
        Self { initial, cap, factor: 2.0, jitter: 0.0, next: initial }
    }

    /// Lengthens each delay by a random part of up to `jitter` times itself, so that many clients do not return at once.
    pub fn with_jitter(mut self, jitter: f64) -> Self {
        self.jitter = jitter;
        self
    }

    pub fn with_factor(mut self, factor: f64) -> Self {
        self.factor = factor;
        self
    }

    /// The delay before the next attempt.
    pub fn step(&mut self) -> Duration {
        let delay = self.next;
        self.next = delay.mul_f64(self.factor).min(self.cap);
        jitter(delay, self.jitter)
    }

    /// Starts again from the initial delay, after a success.
    pub fn reset(&mut self) {
        self.next = self.initial;
    }
}

/// `delay` lengthened by a random part of up to `factor` times itself.
pub fn jitter(delay: Duration, factor: f64) -> Duration {
    if factor <= 0.0 {
        return delay;
    }
    delay + delay.mul_f64(rand::rng().random_range(0.0..factor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_cap_and_start_over() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(300));
        let delays: Vec<_> = (0..4).map(|_| backoff.step().as_millis()).collect();
        assert_eq!(delays, [100, 200, 300, 300]);
        backoff.reset();
        assert_eq!(backoff.step().as_millis(), 100);
    }
}
