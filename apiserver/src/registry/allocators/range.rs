//! Which node ports are taken: one `RangeAllocation` object with a bit for each port of the range (upstream:
//! `pkg/registry/core/service/allocator/storage` under `portallocator`).
//!
//! Upstream's servers keep it under the same key and in the same form, so servers of both kinds may run on one etcd at the
//! same time. Every change is a commit at the revision of the object that it began from, so only one server wins a port.

use crate::registry::builtin;
use crate::store::{Layout, object::stored_bytes, storage_status, value::Values};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use coxswain_api::catalogue::{GroupVersion, ResourceType};
use coxswain_api::{Status, Value, json, schema};
use coxswain_storage::{Entry, Error, Expect, Op, Revision, Storage, Write};
use rand::seq::IteratorRandom;
use std::ops::RangeInclusive;
use std::sync::Arc;

/// Below the root of all keys.
const KEY: &str = "ranges/servicenodeports";
/// What upstream calls them in messages and in the configuration of encryption.
const RESOURCE: &str = "servicenodeportallocations";
/// How often a change starts over because another server was first.
const ATTEMPTS_MAX: usize = 256;

/// Why a port was not given.
#[derive(Debug)]
pub enum Refusal {
    /// In the allocator's own words, to be put into a sentence.
    Why(String),
    Status(Status),
}

impl Refusal {
    pub(super) fn why(text: &str) -> Refusal {
        Refusal::Why(text.to_owned())
    }
}

/// The ports of a range that are taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ports {
    range: RangeInclusive<u16>,
    /// Bit n of the whole is the nth port of the range; the lowest byte comes first.
    bits: Vec<u8>,
}

impl Ports {
    pub fn new(range: RangeInclusive<u16>) -> Ports {
        let bytes = range.len().div_ceil(8);
        Ports { range, bits: vec![0; bytes] }
    }

    /// From the two fields of the object; the number in `data` has its highest byte first.
    fn parse(range: &str, data: &[u8]) -> Option<Ports> {
        let (first, last) = range.split_once('-')?;
        let (first, last): (u16, u16) = (first.parse().ok()?, last.parse().ok()?);
        let mut ports = Ports::new(first..=last);
        if first > last || data.len() > ports.bits.len() {
            return None;
        }
        for (bits, byte) in ports.bits.iter_mut().zip(data.iter().rev()) {
            *bits = *byte;
        }
        Some(ports)
    }

    fn data(&self) -> Vec<u8> {
        self.bits.iter().rev().copied().skip_while(|byte| *byte == 0).collect()
    }

    pub fn range_text(&self) -> String {
        format!("{}-{}", self.range.start(), self.range.end())
    }

    fn place(&self, port: u16) -> Option<(usize, u8)> {
        let offset = usize::from(port.checked_sub(*self.range.start())?);
        self.range.contains(&port).then_some((offset / 8, 1 << (offset % 8)))
    }

    pub fn has(&self, port: u16) -> bool {
        self.place(port).is_some_and(|(byte, bit)| self.bits[byte] & bit != 0)
    }

    pub fn release(&mut self, port: u16) {
        if let Some((byte, bit)) = self.place(port) {
            self.bits[byte] &= !bit;
        }
    }

    /// In order.
    pub fn taken(&self) -> impl Iterator<Item = u16> + '_ {
        self.range.clone().filter(|port| self.has(*port))
    }

    /// Takes this one.
    pub fn take(&mut self, port: i64) -> Result<u16, Refusal> {
        let inside = u16::try_from(port).ok().filter(|p| self.range.contains(p));
        let Some((port, (byte, bit))) = inside.and_then(|p| Some((p, self.place(p)?))) else {
            let range = self.range_text();
            return Err(Refusal::Why(format!(
                "provided port is not in the valid range. The range of valid ports is {range}"
            )));
        };
        if self.bits[byte] & bit != 0 {
            return Err(Refusal::why("provided port is already allocated"));
        }
        self.bits[byte] |= bit;
        Ok(port)
    }

    /// Takes one by chance. The lower part of the range is left, as long as possible, to those who choose their port.
    pub fn take_any(&mut self) -> Result<u16, Refusal> {
        let (first, last) = (*self.range.start(), *self.range.end());
        let size = self.range.len() as u16;
        let kept = if size < 128 { 0 } else { (size / 32).clamp(16, 128) };
        let mut rng = rand::rng();
        let mut free = |range: RangeInclusive<u16>| range.filter(|port| !self.has(*port)).choose(&mut rng);
        let port = free(first.saturating_add(kept)..=last).or_else(|| free(self.range.clone()));
        self.take(i64::from(port.ok_or_else(|| Refusal::why("range is full"))?))
    }
}

/// The object as it was last seen in the store.
#[derive(Clone)]
pub struct Known {
    pub ports: Ports,
    revision: Revision,
}

/// The node ports of a cluster.
pub struct NodePorts {
    range: RangeInclusive<u16>,
    storage: Arc<dyn Storage>,
    key: Arc<str>,
    values: Values,
    /// Held by the one writer of this process, as its writes would only get in each other's way. A change begins from
    /// what is known and finds out by its commit if that is old.
    known: tokio::sync::Mutex<Option<Known>>,
}

impl NodePorts {
    pub fn new(range: RangeInclusive<u16>, storage: Arc<dyn Storage>, layout: &Layout) -> NodePorts {
        let transformer = layout.encryption.as_ref().map(|e| e.for_resource("", RESOURCE));
        let values = Values::new(Arc::new(range_allocation()), layout.format_of("", false), transformer, false);
        let key = format!("{}{KEY}", layout.root()).into();
        NodePorts { range, storage, key, values, known: tokio::sync::Mutex::default() }
    }

    pub fn range(&self) -> &RangeInclusive<u16> {
        &self.range
    }

    /// What is taken, as every server left it; none as long as no server has made the object.
    pub async fn read(&self) -> Result<Option<Known>, Status> {
        let (entry, _) = self.storage.get(&self.key, None).await.map_err(storage_status)?;
        self.open(entry).await
    }

    /// Tries something out, and changes nothing.
    pub async fn look<T>(&self, try_out: impl FnOnce(&mut Ports) -> Result<T, Refusal>) -> Result<T, Refusal> {
        let known = self.read().await.map_err(Refusal::Status)?;
        try_out(&mut self.usable(known.as_ref())?.ports.clone())
    }

    /// Does `change` to the ports that are taken. It may be called several times, and its refusal counts only when it
    /// was of what the store has.
    pub async fn change<T>(&self, mut change: impl FnMut(&mut Ports) -> Result<T, Refusal>) -> Result<T, Refusal> {
        let mut known = self.known.lock().await;
        let mut fresh = known.is_none();
        if fresh {
            *known = self.read().await.map_err(Refusal::Status)?;
        }
        for _ in 0..ATTEMPTS_MAX {
            let done = self.usable(known.as_ref()).and_then(|now| {
                let mut ports = now.ports.clone();
                let done = change(&mut ports)?;
                Ok((done, (ports != now.ports).then_some(ports), now.revision))
            });
            let (done, ports, revision) = match done {
                Ok((done, Some(ports), revision)) => (done, ports, revision),
                Ok((done, None, _)) if fresh => return Ok(done),
                Err(refusal) if fresh => return Err(refusal),
                _ => {
                    (*known, fresh) = (self.read().await.map_err(Refusal::Status)?, true);
                    continue;
                }
            };
            match self.write(ports, Expect::At(revision)).await {
                Ok(Ok(written)) => {
                    *known = Some(written);
                    return Ok(done);
                }
                Ok(Err(current)) => (*known, fresh) = (current, true),
                Err(status) => {
                    // It may have been written or not.
                    *known = None;
                    return Err(Refusal::Status(status));
                }
            }
        }
        Err(Refusal::Status(Status::internal(format!("{RESOURCE} are changed by others all the time"))))
    }

    pub async fn release(&self, ports: &[u16]) -> Result<(), Refusal> {
        self.change(|taken| {
            ports.iter().for_each(|port| taken.release(*port));
            Ok(())
        })
        .await
    }

    /// Puts a new state in the place of the one that was read; false if it has changed since.
    pub async fn replace(&self, before: Option<&Known>, ports: Ports) -> Result<bool, Status> {
        if before.is_some_and(|before| before.ports == ports) {
            return Ok(true);
        }
        let mut known = self.known.lock().await;
        let expect = before.map_or(Expect::Absent, |before| Expect::At(before.revision));
        let written = self.write(ports, expect).await?;
        let done = written.is_ok();
        *known = written.map_or_else(|current| current, Some);
        Ok(done)
    }

    /// Ports can be taken only of an object that is there and of this server's range.
    fn usable<'a>(&self, known: Option<&'a Known>) -> Result<&'a Known, Refusal> {
        let Some(known) = known else {
            return Err(Refusal::Why(format!("cannot allocate resources of type {RESOURCE} at this time")));
        };
        if known.ports.range != self.range {
            return Err(Refusal::why("the provided range does not match the current range"));
        }
        Ok(known)
    }

    /// What is there now where the expectation fails.
    async fn write(&self, ports: Ports, expect: Expect) -> Result<Result<Known, Option<Known>>, Status> {
        let object = json!({
            "kind": "RangeAllocation", "apiVersion": "v1", "metadata": {},
            "range": ports.range_text(), "data": STANDARD.encode(ports.data()),
        });
        let json = stored_bytes(&object, self.values.schema());
        let value = self.values.seal(&self.key, &object, &json).await?;
        let write = Write { key: self.key.clone(), expect, op: Op::Put { value, ttl: None } };
        match self.storage.commit(vec![write]).await {
            Ok(revision) => Ok(Ok(Known { ports, revision })),
            Err(Error::Conflict { current, .. }) => Ok(Err(self.open(current).await?)),
            Err(error) => Err(storage_status(error)),
        }
    }

    async fn open(&self, entry: Option<Entry>) -> Result<Option<Known>, Status> {
        let Some(entry) = entry else { return Ok(None) };
        let tree = self.values.open(&entry, &*builtin::strategy("", RESOURCE)).await?.tree;
        let text = |name: &str| tree.get(name).and_then(Value::as_str).unwrap_or_default();
        let ports = STANDARD.decode(text("data")).ok().and_then(|data| Ports::parse(text("range"), &data));
        let wrong = || Status::internal(format!("the range allocation at {} is not understood", self.key));
        Ok(Some(Known { ports: ports.ok_or_else(wrong)?, revision: entry.modified }))
    }
}

/// The type of the object, which is stored and not served.
fn range_allocation() -> ResourceType {
    let group_version = GroupVersion { group: "".into(), version: "v1".into() };
    let schema = schema::builtin().kind("", "v1", "RangeAllocation").expect("it is built in").clone();
    ResourceType {
        group_version,
        plural: RESOURCE.into(),
        singular: RESOURCE.into(),
        kind: "RangeAllocation".into(),
        list_kind: "RangeAllocationList".into(),
        namespaced: false,
        short_names: Vec::new(),
        categories: Vec::new(),
        verbs: Vec::new(),
        subresources: Vec::new(),
        storage_group: "".into(),
        storage_version: "v1".into(),
        storage_version_hash: "".into(),
        served_by_default: false,
        schema,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coxswain_api::codec::Format;
    use coxswain_storage::embedded::{Embedded, Options};

    fn store() -> (tempfile::TempDir, Arc<dyn Storage>) {
        let dir = tempfile::tempdir().unwrap();
        let storage = Embedded::open(dir.path(), Options::default()).unwrap();
        (dir, Arc::new(storage))
    }

    fn node_ports(storage: &Arc<dyn Storage>, format: Format) -> NodePorts {
        NodePorts::new(30000..=32767, storage.clone(), &Layout::new("/registry", format))
    }

    #[test]
    fn the_bits_are_upstreams_number() {
        let mut ports = Ports::new(30000..=32767);
        assert_eq!(ports.data(), [] as [u8; 0]);
        for port in [30000, 30009, 30017] {
            ports.take(port).unwrap();
        }
        assert_eq!(ports.data(), [0b10, 0b10, 1]);
        assert_eq!(Ports::parse("30000-32767", &ports.data()).unwrap(), ports);
        assert_eq!(ports.taken().collect::<Vec<_>>(), [30000, 30009, 30017]);
        assert!(Ports::parse("30000-30007", &[1, 1]).is_none());
        assert!(matches!(ports.take(30009), Err(Refusal::Why(why)) if why == "provided port is already allocated"));
        assert!(matches!(ports.take(80), Err(Refusal::Why(why)) if why.ends_with("valid ports is 30000-32767")));
    }

    #[test]
    fn ports_are_given_by_chance_and_those_of_the_lower_part_last() {
        let mut ports = Ports::new(30000..=30199);
        let given: Vec<u16> = std::iter::from_fn(|| ports.take_any().ok()).collect();
        assert_eq!(given.len(), 200);
        assert!(given[..184].iter().all(|port| *port >= 30016), "200 / 32 is 6, but at least 16 are kept");
        assert!(matches!(ports.take_any(), Err(Refusal::Why(why)) if why == "range is full"));
        assert_eq!(Ports::new(65535..=65535).take_any().unwrap(), 65535);
    }

    #[tokio::test]
    async fn the_object_is_stored_as_upstream_stores_it() {
        let (_dir, storage) = store();
        let allocator = node_ports(&storage, Format::Protobuf);
        assert!(matches!(allocator.change(|p| p.take(30001)).await, Err(Refusal::Why(why)) if why
            == "cannot allocate resources of type servicenodeportallocations at this time"));
        assert!(allocator.replace(None, Ports::new(30000..=32767)).await.unwrap());
        allocator.change(|p| p.take(30001)).await.unwrap();
        let (entry, _) = storage.get("/registry/ranges/servicenodeports", None).await.unwrap();
        // The envelope, empty metadata whose strings are all written, the range, the data.
        let expected = b"k8s\0\n\x15\n\x02v1\x12\x0fRangeAllocation\x12\"\n\x10\n\0\x12\0\x1a\0\"\0*\x002\x008\0B\0\x12\x0b30000-32767\x1a\x01\x02\x1a\0\"\0";
        assert_eq!(entry.unwrap().value, &expected[..]);
    }

    #[tokio::test]
    async fn two_servers_never_take_one_port() {
        let (_dir, storage) = store();
        let servers = [node_ports(&storage, Format::Protobuf), node_ports(&storage, Format::Json)];
        servers[0].replace(None, Ports::new(30000..=32767)).await.unwrap();
        assert!(!servers[1].replace(None, Ports::new(30000..=32767)).await.unwrap());
        let servers = servers.map(Arc::new);
        let tasks: Vec<_> = (0..8)
            .map(|task| {
                let server = servers[task % 2].clone();
                tokio::spawn(async move {
                    let mut given = Vec::new();
                    for _ in 0..20 {
                        given.push(server.change(|p| p.take_any()).await.unwrap());
                    }
                    given
                })
            })
            .collect();
        let mut all = Vec::new();
        for task in tasks {
            all.extend(task.await.unwrap());
        }
        all.sort_unstable();
        let stored = servers[0].read().await.unwrap().unwrap().ports;
        assert_eq!(stored.taken().collect::<Vec<_>>(), all, "every port was given once");
        // What one server gives back, the other has, however old what it knows is.
        servers[0].release(&all).await.unwrap();
        servers[1].change(|p| p.take(i64::from(all[0]))).await.unwrap();
        let refused = servers[0].change(|p| p.take(i64::from(all[0]))).await;
        assert!(matches!(refused, Err(Refusal::Why(_))));
        // Servers of another range keep away.
        let other = NodePorts::new(20000..=20100, storage.clone(), &Layout::default());
        assert!(
            matches!(other.change(|p| p.take_any()).await, Err(Refusal::Why(why)) if why.contains("does not match"))
        );
    }
}
