//! Samples of what the process is doing, taken by a signal for every so much of its processor time.
//!
//! The handler of the signal interrupts any code of any thread, so it does as little as can be done: it copies the registers and the
//! upper part of the stack into a slot that lies ready. It allocates nothing, waits for nothing, and reads the stack through
//! the kernel, which refuses an address where a plain read would end the process. Stacks are unwound later and elsewhere.
//!
//! This is the one place with `unsafe`: a handler, the registers that the kernel hands it, and the timer have no safe form.
#![allow(unsafe_code)]

use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
use parking_lot::Mutex;
use std::io::{self, IoSliceMut};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// Processor time between two samples (Go: 100 Hz).
pub const PERIOD: Duration = Duration::from_millis(10);
/// Samples that wait to be taken away. When none is free, a sample is lost and counted.
const SLOTS: usize = 128;
/// Slots that the handler looks at before it gives up.
const TRIES_MAX: usize = 8;
/// As much of a stack as is looked at. Of a deeper one the outer callers stay unknown.
const STACK_BYTES_MAX: usize = 64 * 1024;
/// The stack is read in pieces of the smallest page, as the kernel reads either all of a piece or none.
const PAGE: usize = 4096;
const PIECES: usize = STACK_BYTES_MAX / PAGE;

/// What a thread was doing.
pub struct Sample {
    pub registers: Registers,
    /// What lies in memory from [`Registers::stack`] on.
    stack: Vec<u8>,
    read: usize,
    full: bool,
}

#[derive(Clone, Copy, Default)]
pub struct Registers {
    pub instruction: u64,
    pub stack: u64,
    pub frame: u64,
    /// Where a call returns to, which this processor keeps in a register.
    #[cfg(target_arch = "aarch64")]
    pub link: u64,
}

impl Sample {
    /// The word at an address of the stack.
    pub fn word(&self, address: u64) -> Option<u64> {
        let at = usize::try_from(address.checked_sub(self.registers.stack)?).ok()?;
        let bytes = self.stack.get(..self.read)?.get(at..at.checked_add(8)?)?;
        Some(u64::from_ne_bytes(bytes.try_into().ok()?))
    }
}

static RUNNING: AtomicBool = AtomicBool::new(false);
static ALL: OnceLock<Vec<Mutex<Sample>>> = OnceLock::new();
static NEXT: AtomicUsize = AtomicUsize::new(0);
static LOST: AtomicU64 = AtomicU64::new(0);

/// Samples are taken as long as this lives. There must be one at a time.
pub struct Sampler {
    slots: &'static [Mutex<Sample>],
}

impl Sampler {
    pub fn start() -> io::Result<Self> {
        let empty = || Sample { registers: Registers::default(), stack: Vec::new(), read: 0, full: false };
        let slots = ALL.get_or_init(|| (0..SLOTS).map(|_| Mutex::new(empty())).collect());
        for slot in slots {
            // A handler that is still at work on a slot leaves it with the memory it has.
            let Some(mut slot) = slot.try_lock() else { continue };
            slot.full = false;
            slot.stack = vec![0; STACK_BYTES_MAX];
        }
        LOST.store(0, Ordering::Relaxed);
        let action = SigAction::new(SigHandler::SigAction(on_signal), SaFlags::SA_RESTART, SigSet::empty());
        // SAFETY: the handler calls only what may be called in one. It stays for good, as a late signal would end the
        // process where nobody handles it.
        unsafe { sigaction(Signal::SIGPROF, &action) }?;
        let sampler = Sampler { slots };
        RUNNING.store(true, Ordering::SeqCst);
        set_timer(PERIOD)?;
        Ok(sampler)
    }

    /// Hands over what was sampled since the last time.
    pub fn drain(&self, mut take: impl FnMut(&Sample)) {
        for slot in self.slots {
            // Never waited for: a lock with nobody in wait is left without a system call, in the handler too.
            let Some(mut slot) = slot.try_lock() else { continue };
            if slot.full {
                take(&slot);
                slot.full = false;
            }
        }
    }

    /// Samples for which there was no room.
    pub fn lost(&self) -> u64 {
        LOST.load(Ordering::Relaxed)
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        if let Err(error) = set_timer(Duration::ZERO) {
            tracing::error!(%error, "the timer of a CPU profile cannot be stopped");
        }
        RUNNING.store(false, Ordering::SeqCst);
        for slot in self.slots {
            if let Some(mut slot) = slot.try_lock() {
                slot.stack = Vec::new();
            }
        }
    }
}

/// The timer counts the processor time of all threads and signals the one that runs when it expires. It is not inherited by
/// children.
fn set_timer(period: Duration) -> io::Result<()> {
    let period = libc::timeval { tv_sec: 0, tv_usec: libc::suseconds_t::from(period.subsec_micros()) };
    let timer = libc::itimerval { it_interval: period, it_value: period };
    // SAFETY: the timer is a value of our own, and nothing is written back.
    match unsafe { libc::setitimer(libc::ITIMER_PROF, &timer, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

extern "C" fn on_signal(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    if !RUNNING.load(Ordering::SeqCst) {
        return;
    }
    // What was interrupted may be about to look at it.
    let error = Errno::last_raw();
    // SAFETY: the kernel hands a handler that was installed with SA_SIGINFO the context that it interrupted.
    if let Some(context) = unsafe { context.cast::<libc::ucontext_t>().as_ref() } {
        take(registers(context));
    }
    Errno::set_raw(error);
}

fn take(registers: Registers) {
    let Some(slots) = ALL.get() else { return };
    for _ in 0..TRIES_MAX {
        let number = NEXT.fetch_add(1, Ordering::Relaxed) % SLOTS;
        let Some(mut slot) = slots.get(number).and_then(Mutex::try_lock) else { continue };
        if slot.full || slot.stack.is_empty() {
            continue;
        }
        slot.registers = registers;
        slot.read = read_stack(registers.stack as usize, &mut slot.stack);
        slot.full = true;
        return;
    }
    LOST.fetch_add(1, Ordering::Relaxed);
}

/// Copies what can be read, a page at a time. Where the kernel forbids it altogether, only the innermost function is known.
fn read_stack(from: usize, into: &mut [u8]) -> usize {
    let mut pieces = [RemoteIoVec { base: 0, len: 0 }; PIECES];
    let mut at = from;
    for piece in &mut pieces {
        let end = (at & !(PAGE - 1)).wrapping_add(PAGE);
        *piece = RemoteIoVec { base: at, len: end.wrapping_sub(at) };
        at = end;
    }
    process_vm_readv(Pid::this(), &mut [IoSliceMut::new(into)], &pieces).unwrap_or(0)
}

#[cfg(target_arch = "x86_64")]
fn registers(context: &libc::ucontext_t) -> Registers {
    let all = &context.uc_mcontext.gregs;
    let register = |number: libc::c_int| all[number as usize] as u64;
    Registers { instruction: register(libc::REG_RIP), stack: register(libc::REG_RSP), frame: register(libc::REG_RBP) }
}

#[cfg(target_arch = "aarch64")]
fn registers(context: &libc::ucontext_t) -> Registers {
    let all = &context.uc_mcontext;
    Registers { instruction: all.pc, stack: all.sp, frame: all.regs[29], link: all.regs[30] }
}
