//! What test containers run: one static program that needs nothing of its image.
//!
//! `serve` answers HTTP with who and where it is, and lets a test switch its health; `get` is the client for it. The
//! other commands end, crash or burn CPU as a test asks. Called as `pause`, it holds a pod's namespaces.

mod http;
mod serve;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use std::process::exit;
use std::time::{Duration, Instant};

const USAGE: &str = "usage: app COMMAND
  serve [--port=8080] [--version=TEXT] [--drain-ms=0] [--start-delay-ms=0]   answer HTTP
  get URL [--count=1] [--concurrency=1] [--timeout-ms=5000] [--every-ms=0]   ask and print each answer on a line
  resolve NAME                       print the addresses of a name
  sleep SECONDS                      wait, then end with 0; SIGTERM ends it at once
  busy SECONDS                       use a whole CPU
  grow MEGABYTES                     take that much memory and keep it
  exit CODE [AFTER_MS]               end with this code
  lines COUNT [EVERY_MS] [TEXT]      print numbered lines
  pause                              hold the namespaces of a pod";

fn main() {
    let mut args = std::env::args();
    let program = args.next().unwrap_or_default();
    let mut rest: Vec<String> = args.collect();
    // The pause image names this program `/pause`, agnhost's scripts call `netexec`.
    if program.ends_with("/pause") {
        pause();
    }
    let command = if rest.is_empty() { String::new() } else { rest.remove(0) };
    let number = |i: usize, default: u64| rest.get(i).map_or(default, |v| v.parse().unwrap_or_else(|_| usage()));
    match command.as_str() {
        "serve" | "netexec" => serve::run(&rest),
        "get" => get(&rest),
        "resolve" => resolve(rest.first().unwrap_or_else(|| usage())),
        "sleep" => {
            end_on_term(0);
            std::thread::sleep(Duration::from_secs(number(0, 0)));
        }
        "busy" => busy(Duration::from_secs(number(0, 1))),
        "grow" => grow(number(0, 1) as usize),
        "exit" => {
            std::thread::sleep(Duration::from_millis(number(1, 0)));
            exit(number(0, 0) as i32);
        }
        "lines" => {
            let text = rest.get(2).map_or("line", String::as_str);
            for i in 1..=number(0, 1) {
                println!("{text} {i}");
                std::thread::sleep(Duration::from_millis(number(1, 0)));
            }
        }
        "pause" => pause(),
        _ => {
            usage();
        }
    }
}

fn usage() -> ! {
    eprintln!("{USAGE}");
    exit(2)
}

/// The value of `--name=value` among the arguments.
fn option<T: std::str::FromStr>(args: &[String], name: &str, default: T) -> T {
    let prefix = format!("--{name}=");
    let given = args.iter().find_map(|a| a.strip_prefix(&prefix));
    given.map_or(default, |v| v.parse().unwrap_or_else(|_| usage()))
}

/// As the first process of a container no signal has a default action, so SIGTERM must be waited for.
fn end_on_term(code: i32) {
    let mut set = SigSet::empty();
    set.add(Signal::SIGTERM);
    set.add(Signal::SIGINT);
    let _ = set.thread_block();
    std::thread::spawn(move || {
        let _ = set.wait();
        exit(code);
    });
}

/// Waits for SIGTERM, reaping what other containers of a shared process namespace leave behind.
fn pause() -> ! {
    let mut set = SigSet::empty();
    set.add(Signal::SIGTERM);
    set.add(Signal::SIGINT);
    set.add(Signal::SIGCHLD);
    let _ = set.thread_block();
    loop {
        match set.wait() {
            Ok(Signal::SIGCHLD) => {
                while matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(status) if status != WaitStatus::StillAlive)
                {
                }
            }
            _ => exit(0),
        }
    }
}

fn get(args: &[String]) {
    let url = args.first().filter(|u| !u.starts_with("--")).unwrap_or_else(|| usage()).clone();
    let count: u64 = option(args, "count", 1);
    let concurrency: u64 = option(args, "concurrency", 1);
    let timeout = Duration::from_millis(option(args, "timeout-ms", 5000));
    let every = Duration::from_millis(option(args, "every-ms", 0));
    let workers: Vec<_> = (0..concurrency.clamp(1, 64))
        .map(|_| {
            let url = url.clone();
            std::thread::spawn(move || {
                let mut failed = 0u64;
                for _ in 0..count {
                    match http::get(&url, timeout) {
                        Ok((200, body)) => println!("{}", body.trim_end()),
                        Ok((code, body)) => {
                            println!("HTTP {code} {}", body.trim_end());
                            failed += 1;
                        }
                        Err(e) => {
                            println!("error: {e}");
                            failed += 1;
                        }
                    }
                    std::thread::sleep(every);
                }
                failed
            })
        })
        .collect();
    let failed: u64 = workers.into_iter().map(|w| w.join().unwrap_or(1)).sum();
    exit(i32::from(failed > 0));
}

fn resolve(name: &str) {
    match std::net::ToSocketAddrs::to_socket_addrs(&(name, 0)) {
        Ok(addresses) => addresses.for_each(|a| println!("{}", a.ip())),
        Err(e) => {
            eprintln!("{name}: {e}");
            exit(1);
        }
    }
}

fn busy(time: Duration) {
    end_on_term(0);
    let end = Instant::now() + time;
    let mut n = 0u64;
    while Instant::now() < end {
        n = std::hint::black_box(n.wrapping_mul(31).wrapping_add(7));
    }
}

fn grow(megabytes: usize) {
    end_on_term(0);
    let mut held = Vec::new();
    for i in 0..megabytes {
        held.push(vec![i as u8 | 1; 1 << 20]);
    }
    println!("holding {} MiB", std::hint::black_box(&held).len());
    std::thread::sleep(Duration::from_secs(3600));
}
