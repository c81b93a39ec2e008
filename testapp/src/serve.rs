//! The server: tells who it is, shows its environment and files, and is healthy or ready as it is told to be.

use crate::http::{self, Request};
use crate::option;
use nix::sys::signal::{SigSet, Signal};
use std::io::BufReader;
use std::net::{TcpListener, TcpStream};
use std::process::exit;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

const IN_FLIGHT_WAIT_MAX: Duration = Duration::from_secs(20);

struct State {
    version: String,
    healthy: AtomicBool,
    ready: AtomicBool,
    ending: AtomicBool,
    in_flight: AtomicU64,
    served: AtomicU64,
    started: Instant,
    start_delay: Duration,
}

pub fn run(args: &[String]) {
    let port: u16 = option(args, "port", option(args, "http-port", 8080));
    let drain = Duration::from_millis(option(args, "drain-ms", 0));
    let version = std::env::var("APP_VERSION").unwrap_or_else(|_| "1".into());
    let state = Arc::new(State {
        version: option(args, "version", version),
        healthy: AtomicBool::new(true),
        ready: AtomicBool::new(true),
        ending: AtomicBool::new(false),
        in_flight: AtomicU64::new(0),
        served: AtomicU64::new(0),
        started: Instant::now(),
        start_delay: Duration::from_millis(option(args, "start-delay-ms", 0)),
    });
    end_gracefully(Arc::clone(&state), drain);
    let listener = match TcpListener::bind(("::", port)).or_else(|_| TcpListener::bind(("0.0.0.0", port))) {
        Ok(listener) => listener,
        Err(e) => {
            eprintln!("port {port}: {e}");
            exit(1);
        }
    };
    println!("serving version {} on port {port}", state.version);
    for stream in listener.incoming().flatten() {
        let state = Arc::clone(&state);
        std::thread::spawn(move || connection(stream, &state));
    }
}

/// On SIGTERM: not ready any more, serve on for the drain time, let requests in flight end, then end.
fn end_gracefully(state: Arc<State>, drain: Duration) {
    let mut set = SigSet::empty();
    set.add(Signal::SIGTERM);
    set.add(Signal::SIGINT);
    // Blocked before any other thread starts, so that all inherit it.
    let _ = set.thread_block();
    std::thread::spawn(move || {
        let _ = set.wait();
        println!("ending: SIGTERM");
        state.ending.store(true, SeqCst);
        std::thread::sleep(drain);
        let end = Instant::now() + IN_FLIGHT_WAIT_MAX;
        while state.in_flight.load(SeqCst) > 0 && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        println!("ended after {} requests", state.served.load(SeqCst));
        exit(0);
    });
}

fn connection(mut stream: TcpStream, state: &State) {
    let Ok(reading) = stream.try_clone() else { return };
    let mut from = BufReader::new(reading);
    while let Ok(Some(request)) = Request::read(&mut from) {
        state.in_flight.fetch_add(1, SeqCst);
        let (code, body) = answer(&request, &stream, state);
        // No connection outlives the server's end: clients must go elsewhere.
        let close = request.close || state.ending.load(SeqCst);
        let sent = http::respond(&mut stream, code, &body, close);
        state.in_flight.fetch_sub(1, SeqCst);
        state.served.fetch_add(1, SeqCst);
        if sent.is_err() || close {
            return;
        }
    }
}

fn answer(request: &Request, stream: &TcpStream, state: &State) -> (u16, String) {
    let host = std::env::var("HOSTNAME")
        .unwrap_or_else(|_| std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned());
    let switch = |flag: &AtomicBool| {
        if let Some(value) = request.param("set") {
            flag.store(value == "true", SeqCst);
        }
        let started = state.started.elapsed() >= state.start_delay;
        if flag.load(SeqCst) && started { (200, "ok\n".to_owned()) } else { (500, "failing\n".to_owned()) }
    };
    match request.path.as_str() {
        "/" | "/hostname" | "/hostName" => (200, format!("{host}\n")),
        "/version" => (200, format!("{}\n", state.version)),
        "/identity" => (200, format!("{host} version={} pid={}\n", state.version, std::process::id())),
        "/clientip" => (200, stream.peer_addr().map(|a| format!("{a}\n")).unwrap_or_default()),
        "/healthz" => switch(&state.healthy),
        "/readyz" => {
            let (code, body) = switch(&state.ready);
            if state.ending.load(SeqCst) { (503, "ending\n".into()) } else { (code, body) }
        }
        "/env" => match request.param("name") {
            Some(name) => std::env::var(name).map_or((404, "not set\n".into()), |v| (200, format!("{v}\n"))),
            None => (200, std::env::vars().map(|(k, v)| format!("{k}={v}\n")).collect()),
        },
        "/file" => match std::fs::read_to_string(request.param("path").unwrap_or("")) {
            Ok(text) => (200, text),
            Err(e) => (404, format!("{e}\n")),
        },
        "/headers" => (200, request.headers.iter().map(|(k, v)| format!("{k}: {v}\n")).collect()),
        "/echo" => (200, format!("{}\n", request.param("msg").unwrap_or(""))),
        "/slow" => {
            let ms = request.param("ms").and_then(|v| v.parse().ok()).unwrap_or(1000u64);
            std::thread::sleep(Duration::from_millis(ms.min(60_000)));
            (200, format!("{host}\n"))
        }
        "/exit" => exit(request.param("code").and_then(|c| c.parse().ok()).unwrap_or(0)),
        other => (404, format!("no such page: {other}\n")),
    }
}
