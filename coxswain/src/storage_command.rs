//! `coxswain storage check|backup|restore|migrate`: the data of a cluster as a whole.
//!
//! Stores are named by address (see `coxswain_storage::address`): `embedded:///DIR`, `etcd://HOST:PORT`, `postgres://…`.
//! An embedded store that a server is using is worked on by that server, which listens on a socket in the store's directory
//! ([`crate::admin`]); etcd and Postgres are worked on from here, and the servers that use them notice.

pub mod decode;

use crate::admin;
use anyhow::{Context, Result, bail};
use clap::{Arg, ArgMatches, Command};
use coxswain_storage::address::{Address, without_password};
use coxswain_storage::migrate::{Progress, Report};
use coxswain_storage::switch::{Opener, Switch};
use coxswain_storage::{Storage, backup, check};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// A store that is worked on from here keeps house by what its servers are set to, or not at all.
const KEEP_HISTORY: Duration = Duration::from_secs(3_600);
/// Revisions left free behind a restored backup, for what the lost store did after it. Etcd has to be written to for each.
const BUMP: u64 = 1_000_000;
const BUMP_ETCD: u64 = 10_000;

pub fn command() -> Command {
    let store = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name("ADDRESS").required(true).help(help)
    };
    let file =
        |name: &'static str, help: &'static str| Arg::new(name).long(name).value_name("FILE").required(true).help(help);
    Command::new("storage")
        .about("Checks, backs up, restores and moves the data of a cluster")
        .after_help(
            "A store's ADDRESS is embedded:///DIR, etcd://HOST:PORT[,HOST:PORT…][/PREFIX] (etcds:// with TLS, ?cafile=&certfile=&keyfile=) \
             or postgres://USER:PASSWORD@HOST/DATABASE[?sslmode=verify-full&sslrootcert=FILE&schema=NAME].",
        )
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(
            Command::new("check")
                .about("Reads all of a store or a backup and says what is damaged or makes no sense, and where")
                .arg(Arg::new("what").value_name("ADDRESS|FILE").required(true).help("The store, or the file of a backup")),
        )
        .subcommand(
            Command::new("backup")
                .about("Writes all of a store, as of one revision, to a file; servers may go on using it")
                .arg(store("from", "The store"))
                .arg(file("to", "The file, which must not exist yet; - for standard output")),
        )
        .subcommand(
            Command::new("restore")
                .about("Fills an empty store from a backup")
                .arg(file("from", "The backup; - for standard input"))
                .arg(store("to", "The store, which must be empty"))
                .arg(
                    Arg::new("bump-revision")
                        .long("bump-revision")
                        .value_name("COUNT")
                        .value_parser(clap::value_parser!(u64))
                        .help(
                            "How far behind the backup's revision the store goes on, so that what clients saw after the \
                             backup does not come again [default: 1000000; etcd: 10000]",
                        ),
                ),
        )
        .subcommand(
            Command::new("migrate")
                .about("Moves all data to another store while servers use it; they go along without a restart")
                .arg(store("from", "The store in use"))
                .arg(store("to", "The store to use from then on, which must be empty")),
        )
}

pub fn main(matches: &ArgMatches) -> Result<()> {
    crate::logging::init(0);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let Some((name, matches)) = matches.subcommand() else { return Ok(()) };
    let text = |name: &str| matches.get_one::<String>(name).cloned().unwrap_or_default();
    runtime.block_on(async {
        match name {
            "check" => run_check(&text("what")).await,
            "backup" => run_backup(&text("from"), &text("to")).await,
            "restore" => run_restore(&text("from"), &text("to"), matches.get_one("bump-revision").copied()).await,
            _ => run_migrate(&text("from"), &text("to")).await,
        }
    })
}

/// A store as a server uses it: wherever its data has moved or moves to, the server goes along.
pub async fn in_use(store: Arc<dyn Storage>, keep_history: Duration) -> Result<Arc<Switch>> {
    let opener: Opener =
        Arc::new(move |to| Box::pin(async move { Address::parse(&to)?.open_existing(keep_history).await }));
    Ok(Arc::new(Switch::new(store, opener).await.map_err(plain)?))
}

/// Tells on one line how far it has come, if somebody looks on.
struct Teller {
    shown: bool,
    last: parking_lot::Mutex<std::time::Instant>,
}

impl Teller {
    fn new() -> Teller {
        use std::io::IsTerminal;
        Teller { shown: std::io::stderr().is_terminal(), last: parking_lot::Mutex::new(std::time::Instant::now()) }
    }

    fn tell(&self, what: &str, entries: u64) {
        let mut last = self.last.lock();
        if self.shown && last.elapsed() > Duration::from_millis(200) {
            *last = std::time::Instant::now();
            eprint!("\r{what}: {entries} entries\x1b[K");
        }
    }

    fn end(&self) {
        if self.shown {
            eprint!("\r\x1b[K");
        }
    }
}

/// A store's own sentence says it all; its chain of causes would say it twice.
fn plain(error: coxswain_storage::Error) -> anyhow::Error {
    anyhow::anyhow!("{error}")
}

/// A store that is used from here, or the server that has it open.
enum Source {
    Here(Arc<dyn Storage>),
    Server(PathBuf),
}

async fn source(address: &str) -> Result<Source> {
    let parsed = Address::parse(address).map_err(plain)?;
    if let Address::Embedded(directory) = &parsed
        && admin::is_served(directory).await
    {
        return Ok(Source::Server(directory.clone()));
    }
    Ok(Source::Here(parsed.open_existing(KEEP_HISTORY).await.map_err(plain)?))
}

async fn run_check(what: &str) -> Result<()> {
    let teller = Teller::new();
    let told = |entries| teller.tell("checking", entries);
    let decode = decode::Decoder::default();
    if Path::new(what).is_file() {
        let file = tokio::fs::File::open(what).await.with_context(|| format!("opening {what}"))?;
        let trailer = check_backup(file, &decode, &told).await;
        teller.end();
        let (header, trailer, complaints) = trailer?;
        return conclude(
            complaints,
            format!(
                "a backup of {} entries ({} bytes) at revision {}",
                trailer.entries, trailer.bytes, header.revision
            ),
            &decode,
        );
    }
    match source(what).await? {
        // The server hands out all entries as of a revision; what it reads is verified by its engine.
        Source::Server(directory) => {
            let stream = admin::backup(&directory).await?;
            let found = check_backup(stream, &decode, &told).await;
            teller.end();
            let (header, trailer, complaints) = found?;
            let what = format!("{} entries ({} bytes) at revision {}", trailer.entries, trailer.bytes, header.revision);
            conclude(complaints, format!("{what}, read through the server that uses the store"), &decode)
        }
        Source::Here(store) => {
            let found = check::check(&*store, &|key, value| decode.check(key, value), told).await;
            teller.end();
            let report = found.map_err(plain)?;
            if let Some((marker, _)) = coxswain_storage::moved::read(&*store).await.map_err(plain)? {
                println!("note: {marker}");
            }
            let what = format!(
                "{} entries ({} bytes, {} that expire) at revision {}, {} commits of history after revision {}",
                report.entries, report.bytes, report.expiring, report.revision, report.commits, report.oldest
            );
            conclude(report.complaints, what, &decode)
        }
    }
}

fn conclude(complaints: Vec<String>, what: String, decode: &decode::Decoder) -> Result<()> {
    println!("{what}; {}", decode.summary());
    for complaint in &complaints {
        println!("damaged: {complaint}");
    }
    if complaints.is_empty() {
        println!("all is well");
        return Ok(());
    }
    bail!("{} things are wrong", complaints.len())
}

async fn check_backup(
    from: impl AsyncRead + Unpin,
    decode: &decode::Decoder,
    told: &impl Fn(u64),
) -> Result<(backup::Header, backup::Trailer, Vec<String>)> {
    let mut reader = backup::Reader::new(from).await.map_err(plain)?;
    let (mut complaints, mut count) = (Vec::new(), 0);
    loop {
        match reader.next().await.map_err(plain)? {
            backup::Record::Entry(entry, _) => {
                if let Err(what) = decode.check(&entry.key, &entry.value)
                    && complaints.len() < 100
                {
                    complaints.push(format!("{}: {what}", entry.key));
                }
                count += 1;
                told(count);
            }
            backup::Record::End(trailer) => return Ok((reader.header, trailer, complaints)),
        }
    }
}

async fn run_backup(from: &str, to: &str) -> Result<()> {
    let teller = Teller::new();
    let source = source(from).await?;
    if to == "-" {
        return backup_to(source, &mut tokio::io::stdout(), &teller).await;
    }
    // Under another name until it is whole.
    let unfinished = format!("{to}.unfinished");
    if Path::new(to).exists() {
        bail!("{to} exists already");
    }
    let mut options = tokio::fs::OpenOptions::new();
    // It holds every secret of the cluster.
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(&unfinished).await;
    let mut file =
        tokio::io::BufWriter::with_capacity(1 << 20, file.with_context(|| format!("creating {unfinished}"))?);
    let done = backup_to(source, &mut file, &teller).await;
    teller.end();
    if let Err(error) = done {
        let _ = tokio::fs::remove_file(&unfinished).await;
        return Err(error);
    }
    file.into_inner().sync_all().await.with_context(|| format!("writing {unfinished}"))?;
    tokio::fs::rename(&unfinished, to).await.with_context(|| format!("naming {to}"))?;
    Ok(())
}

async fn backup_to(source: Source, to: &mut (impl AsyncWrite + Unpin), teller: &Teller) -> Result<()> {
    let (header, trailer) = match source {
        Source::Here(store) => {
            backup::write(&*store, to, |entries| teller.tell("backing up", entries)).await.map_err(plain)?
        }
        Source::Server(directory) => {
            // What comes is read as a backup while it is passed on: a stream that breaks off is noticed.
            let mut stream = admin::backup(&directory).await?;
            let (mut copy, checked) = tokio::io::duplex(1 << 20);
            let passing = async {
                let mut chunk = vec![0; 256 << 10];
                loop {
                    let count = stream.read(&mut chunk).await.context("listening to the server")?;
                    if count == 0 {
                        drop(copy);
                        return to.flush().await.context("writing");
                    }
                    to.write_all(&chunk[..count]).await.context("writing")?;
                    // A checker that has found something wrong reads no more; it says what.
                    let _ = copy.write_all(&chunk[..count]).await;
                }
            };
            let checking = async {
                let mut reader = backup::Reader::new(checked).await.map_err(plain)?;
                let mut count = 0;
                loop {
                    match reader.next().await.map_err(plain)? {
                        backup::Record::Entry(..) => {
                            count += 1;
                            teller.tell("backing up", count);
                        }
                        backup::Record::End(trailer) => return anyhow::Ok((reader.header, trailer)),
                    }
                }
            };
            let (passed, checked) = tokio::join!(passing, checking);
            passed?;
            checked?
        }
    };
    teller.end();
    eprintln!("{} entries ({} bytes) at revision {}", trailer.entries, trailer.bytes, header.revision);
    Ok(())
}

async fn run_restore(from: &str, to: &str, bump: Option<u64>) -> Result<()> {
    let address = Address::parse(to).map_err(plain)?;
    let bump = bump.unwrap_or(if matches!(address, Address::Etcd { .. }) { BUMP_ETCD } else { BUMP });
    let teller = Teller::new();
    let told = |entries| teller.tell("restoring", entries);
    let store = address.open(KEEP_HISTORY).await.map_err(plain)?;
    let restored = if from == "-" {
        backup::restore(tokio::io::stdin(), store, bump, told).await
    } else {
        let file = tokio::fs::File::open(from).await.with_context(|| format!("opening {from}"))?;
        backup::restore(tokio::io::BufReader::with_capacity(1 << 20, file), store, bump, told).await
    };
    teller.end();
    let (trailer, revision) = restored
        .map_err(plain)
        .with_context(|| format!("{} may be filled in part: empty it before you try again", without_password(to)))?;
    eprintln!("{} entries ({} bytes); the store goes on from revision {revision}", trailer.entries, trailer.bytes);
    Ok(())
}

async fn run_migrate(from: &str, to: &str) -> Result<()> {
    let teller = Teller::new();
    let told = |progress: Progress| teller.tell(&progress.step, progress.entries);
    // The servers that go there must find it by the same words.
    let to = match Address::parse(to).map_err(plain)? {
        Address::Embedded(directory) => format!("embedded://{}", directory.display()),
        _ => to.to_owned(),
    };
    let report = match source(from).await? {
        Source::Server(directory) => admin::migrate(&directory, &to, &told).await,
        Source::Here(store) => move_to(&*store, &to, &told).await,
    };
    teller.end();
    let report = report?;
    println!(
        "moved {} entries ({} bytes) to {} in {:.1} s; writes waited for {:.3} s",
        report.entries,
        report.bytes,
        without_password(&to),
        report.seconds,
        report.refused_seconds
    );
    println!("verified by checksum at revision {}: sha256 {}", report.compared_at, report.sha256);
    println!(
        "the old store ends at revision {}, the new one goes on from {}",
        report.source_revision, report.target_revision
    );
    std::io::stdout().flush()?;
    Ok(())
}

/// Moves a store's data; the target is open only as long as that takes.
pub async fn move_to(source: &dyn Storage, to: &str, told: &(dyn Fn(Progress) + Send + Sync)) -> Result<Report> {
    let target = Address::parse(to).map_err(plain)?.open(KEEP_HISTORY).await.map_err(plain)?;
    coxswain_storage::migrate::migrate(source, target, to, told).await.map_err(plain)
}
