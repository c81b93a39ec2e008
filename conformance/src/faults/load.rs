//! What goes on while faults are inflicted: clients that fight over objects, watches that follow all of them, lists that are
//! taken. At the end all of it is checked against each other.

use super::checks::{self, Listed, Watched};
use super::clients::{self, Register, Shared, recorded};
use super::history::{Answer, Call, History, Operation};
use super::http::{self, Following, Server};
use super::lock;
use super::process::wait_until;
use super::stores::Bench;
use anyhow::{Result, bail, ensure};
use rand::Rng;
use rand::rngs::StdRng;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::JoinHandle;

const CLIENTS: usize = 8;

pub struct Load {
    servers: Vec<Arc<Server>>,
    history: Arc<History>,
    shared: Arc<Shared>,
    following: Arc<Following>,
    watches: Vec<JoinHandle<Result<Vec<Watched>>>>,
    lists: Arc<Mutex<Vec<Listed>>>,
    lister: JoinHandle<Result<()>>,
    clients: Vec<JoinHandle<Result<()>>>,
}

impl Load {
    /// Clients call the registers, which are the servers themselves or what stands before them.
    pub fn start<R: Register>(
        servers: Vec<Arc<Server>>,
        registers: Vec<Arc<R>>,
        may_expire: bool,
        rng: &mut StdRng,
    ) -> Load {
        let (history, shared) = (Arc::new(History::new()), Arc::new(Shared::default()));
        let following = Arc::new(Following { may_expire, ..Following::default() });
        let mut watches = Vec::new();
        for (index, server) in servers.iter().enumerate() {
            let name = format!("the watch of server {}", index + 1);
            watches.push(tokio::spawn(http::watch(vec![server.clone()], name, following.clone())));
        }
        if servers.len() > 1 {
            let name = "the watch of all servers".to_owned();
            watches.push(tokio::spawn(http::watch(servers.clone(), name, following.clone())));
        }
        let lists = Arc::new(Mutex::new(Vec::new()));
        let lister = tokio::spawn(take_lists(servers.clone(), following.clone(), lists.clone()));
        let clients = (0..CLIENTS)
            .map(|_| tokio::spawn(clients::work(registers.clone(), history.clone(), shared.clone(), rng.random())))
            .collect();
        Load { servers, history, shared, following, watches, lists, lister, clients }
    }

    /// Clients leave the objects that they worked on, and begin with new ones.
    pub fn next_epoch(&self) {
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
    }

    /// Whether something was found already.
    pub fn has_ended(&self) -> bool {
        self.lister.is_finished()
            || self.watches.iter().any(JoinHandle::is_finished)
            || self.clients.iter().any(JoinHandle::is_finished)
    }

    /// One more write, which belongs to the histories as all others do.
    pub async fn create(&self, server: &Server, key: &str) -> Result<Answer> {
        let id = self.shared.ids.fetch_add(1, Ordering::SeqCst) + 1;
        recorded(server, &self.history, key, Call::Create(id)).await
    }

    /// Ends everything, the servers too, and checks what all of them saw. Says what was checked.
    pub async fn finish(self, bench: &mut Bench) -> Result<String> {
        self.shared.stop.store(true, Ordering::SeqCst);
        for client in self.clients {
            client.await??;
        }
        let mut histories = self.history.take();
        // What everything has come to, as each server tells it, belongs to the histories.
        for server in &self.servers {
            for key in histories.keys() {
                recorded(&**server, &self.history, key, Call::Get).await?;
            }
        }
        for (key, operations) in self.history.take() {
            histories.entry(key).or_default().extend(operations);
        }
        let newest = newest_revision(&histories);
        let reached = || self.following.reached.load(Ordering::SeqCst) >= newest;
        let caught_up = wait_until(Duration::from_secs(60), async || reached()).await;
        self.following.stop.store(true, Ordering::SeqCst);
        let mut stories: Vec<Watched> = Vec::new();
        for watch in self.watches {
            stories.extend(watch.await??);
        }
        self.lister.await??;
        ensure!(caught_up, "no watch reached revision {newest} within 60 s:\n{}", bench.logs());
        bench.stop().await?;
        let lists = std::mem::take(&mut *lock(&self.lists));
        match checks::check(&histories, &stories, &lists) {
            Ok(summary) => Ok(format!(
                "{} calls ({} acknowledged writes, {} answers lost) of {} objects; {} changes watched in {} stories; {} lists: \
                 all linearizable, nothing lost, nothing missed",
                summary.operations,
                summary.acknowledged,
                summary.unknown,
                summary.objects,
                summary.events,
                stories.len(),
                summary.lists
            )),
            Err(wrong) => bail!("{} findings; the first:\n{}", wrong.len(), wrong[..wrong.len().min(8)].join("\n")),
        }
    }
}

async fn take_lists(
    servers: Vec<Arc<Server>>,
    following: Arc<Following>,
    lists: Arc<Mutex<Vec<Listed>>>,
) -> Result<()> {
    let mut turn = 0;
    while !following.stop.load(Ordering::SeqCst) {
        turn += 1;
        let page = if turn % 3 == 0 { 7 } else { 500 };
        if let Some(list) = servers[turn % servers.len()].list(page).await? {
            lock(&lists).push(list);
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    Ok(())
}

fn newest_revision(histories: &BTreeMap<String, Vec<Operation>>) -> u64 {
    let revisions = histories.values().flatten().filter_map(|o| match o.answer {
        Answer::Put(version) => Some(version.revision),
        _ => None,
    });
    revisions.max().unwrap_or_default()
}
