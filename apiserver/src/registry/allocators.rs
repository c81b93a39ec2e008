//! Cluster IPs and node ports (upstream: `pkg/registry/core/service/{ipallocator,portallocator}`).
//!
//! A cluster IP is taken by creating its `IPAddress` object, out of the networks of the `ServiceCIDR` objects. A node port
//! is taken by creating its key in the store. Either is one commit that only one of several servers can win, and what a
//! crashed server left behind is found by [`repair`] at the next start.

use super::core::service::{Spec, node_port, spec_mut};
use super::metadata;
use super::options::{OptionsKind, Query, WriteOptions};
use super::pipeline::{Call, Pipeline};
use super::resource::Taken;
use crate::request::{Context, RequestInfo, User, Warnings};
use crate::resources::Served;
use crate::store::Store;
use coxswain_api::field::{Error, Path};
use coxswain_api::{Status, Value, json};
use coxswain_storage::{Expect, ListOptions, Op, Write};
use ipnet::IpNet;
use rand::Rng;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

const MANAGED_BY: &str = "ipallocator.k8s.io";
/// Where taken node ports are kept: one key a port, the value says for whom.
const PORTS_PATH: &str = "coxswain/servicenodeports/";
/// How many random addresses are tried before the range is searched in order.
const RANDOM_TRIES: usize = 64;

/// What the flags say of services.
#[derive(Clone, Debug)]
pub struct ServiceNetwork {
    /// `--service-cluster-ip-range`: one network, or one of each family.
    pub cidrs: Vec<IpNet>,
    /// `--service-node-port-range`.
    pub node_ports: RangeInclusive<u16>,
}

impl Default for ServiceNetwork {
    fn default() -> Self {
        let cidr = "10.96.0.0/16".parse().expect("a network");
        Self { cidrs: vec![cidr], node_ports: 30000..=32767 }
    }
}

impl ServiceNetwork {
    /// From the texts of the flags; a network is named once for each family.
    pub fn parse(cidrs: &str, node_ports: (u16, u16)) -> Result<Self, String> {
        let mut parsed = Vec::new();
        for text in cidrs.split(',').map(str::trim).filter(|t| !t.is_empty()) {
            parsed.push(text.parse::<IpNet>().map_err(|_| format!("service cluster IP range: {text} is no network"))?);
        }
        if parsed.is_empty() || parsed.len() > 2 || (parsed.len() == 2 && family(&parsed[0]) == family(&parsed[1])) {
            return Err("service cluster IP range: one network is wanted, or one of each family".into());
        }
        if node_ports.0 > node_ports.1 {
            return Err("service node port range: the first port is above the last".into());
        }
        Ok(Self { cidrs: parsed, node_ports: node_ports.0..=node_ports.1 })
    }

    pub fn default_family(&self) -> &'static str {
        self.cidrs.first().map_or("IPv4", family)
    }

    pub fn has_family(&self, wanted: &str) -> bool {
        self.cidrs.iter().any(|c| family(c) == wanted)
    }

    pub fn is_dual_stack(&self) -> bool {
        self.has_family("IPv4") && self.has_family("IPv6")
    }
}

fn family(cidr: &IpNet) -> &'static str {
    match cidr {
        IpNet::V4(_) => "IPv4",
        IpNet::V6(_) => "IPv6",
    }
}

/// The first and the last address of a network that a service can have: not the network itself, nor the broadcast address.
fn usable(cidr: &IpNet) -> (u128, u128) {
    match cidr {
        IpNet::V4(net) => {
            let (first, last) = (u32::from(net.network()) as u128, u32::from(net.broadcast()) as u128);
            (first + 1, last.saturating_sub(1))
        }
        IpNet::V6(net) => (u128::from(net.network()) + 1, u128::from(net.broadcast())),
    }
}

fn address(cidr: &IpNet, number: u128) -> IpAddr {
    match cidr {
        IpNet::V4(_) => IpAddr::V4((number as u32).into()),
        IpNet::V6(_) => IpAddr::V6(number.into()),
    }
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(v4) => u32::from(v4) as u128,
        IpAddr::V6(v6) => u128::from(v6),
    }
}

/// Why an address was not given.
enum Refusal {
    NotInRange,
    Taken,
    Full,
    Status(Status),
}

/// What one write of a service has taken, and what it gives back when it is done.
pub(super) struct Taking<'a> {
    pipeline: &'a Pipeline,
    call: &'a Call,
    dry_run: bool,
    held: Held,
    /// Given back once the write is committed.
    surplus: Held,
}

/// Addresses and ports with the stores they are kept in.
struct Held {
    addresses: Vec<String>,
    ports: Vec<u16>,
    ip_store: Option<Arc<Store>>,
}

impl Held {
    fn new(pipeline: &Pipeline) -> Self {
        let ip_store = pipeline.resources.store("networking.k8s.io", "ipaddresses");
        Self { addresses: Vec::new(), ports: Vec::new(), ip_store }
    }

    /// Gives everything back, in the background.
    fn release(&mut self) {
        let addresses = std::mem::take(&mut self.addresses);
        let ports = std::mem::take(&mut self.ports);
        let Some(store) = self.ip_store.clone() else { return };
        if addresses.is_empty() && ports.is_empty() {
            return;
        }
        tokio::spawn(async move { release(&store, &addresses, &ports).await });
    }
}

async fn release(store: &Arc<Store>, addresses: &[String], ports: &[u16]) {
    for address in addresses {
        // Gone already is as good; a failure is mended by the repair at the next start.
        if let Ok(Some(object)) = store.get("", address).await
            && let Err(e) = store.delete(&object).await
        {
            tracing::warn!(address, error = ?e, "a cluster IP was not given back");
        }
    }
    for port in ports {
        let write = Write { key: port_key(store, *port), expect: Expect::Any, op: Op::Delete };
        if let Err(e) = store.storage().commit(vec![write]).await {
            tracing::warn!(port, error = %e, "a node port was not given back");
        }
    }
}

fn port_key(store: &Store, port: u16) -> Arc<str> {
    format!("{}{port}", ports_prefix(store)).into()
}

fn ports_prefix(store: &Store) -> String {
    format!("{}{PORTS_PATH}", store.feed().layout().root())
}

impl Taken for OwnedTaking {
    fn keep(mut self: Box<Self>) {
        self.held.addresses.clear();
        self.held.ports.clear();
        self.surplus.release();
    }
}

/// A [`Taking`] that outlives the call.
pub(super) struct OwnedTaking {
    held: Held,
    surplus: Held,
}

impl Drop for OwnedTaking {
    fn drop(&mut self) {
        self.held.release();
    }
}

impl Drop for Taking<'_> {
    fn drop(&mut self) {
        self.held.release();
    }
}

impl<'a> Taking<'a> {
    pub(super) fn new(pipeline: &'a Pipeline, call: &'a Call) -> Self {
        let (held, surplus) = (Held::new(pipeline), Held::new(pipeline));
        Self { pipeline, call, dry_run: call.query.first("dryRun").is_some(), held, surplus }
    }

    pub(super) fn finish(mut self) -> Box<dyn Taken> {
        let empty = || Held::new(self.pipeline);
        let (a, b) = (empty(), empty());
        let held = std::mem::replace(&mut self.held, a);
        let mut surplus = std::mem::replace(&mut self.surplus, b);
        if self.dry_run {
            surplus.addresses.clear();
            surplus.ports.clear();
        }
        Box::new(OwnedTaking { held, surplus })
    }

    /// Takes the addresses that the service asks for, or any, one for each of its families.
    pub(super) async fn cluster_ips(&mut self, service: &mut Value, old: Option<&Value>) -> Result<(), Status> {
        let new = Spec(service);
        let had: Vec<String> = match old.map(Spec) {
            Some(o) if o.kind() != "ExternalName" && !o.is_headless() => {
                o.texts("clusterIPs").into_iter().map(str::to_owned).collect()
            }
            // A headless service stays so, and has nothing to give back.
            Some(o) if o.is_headless() => return Ok(()),
            _ => Vec::new(),
        };
        if new.kind() == "ExternalName" {
            self.surplus.addresses.extend(had);
            return Ok(());
        }
        if new.is_headless() {
            return Ok(());
        }
        let families: Vec<String> = new.texts("ipFamilies").into_iter().map(str::to_owned).collect();
        let mut ips: Vec<String> = new.texts("clusterIPs").into_iter().map(str::to_owned).collect();
        ips.resize(ips.len().max(families.len()), String::new());
        // Another first address is an error that validation words better.
        if old.is_some() && !had.is_empty() && ips.first() != had.first() {
            return Ok(());
        }
        for (i, family) in families.iter().enumerate() {
            if had.get(i).is_some_and(|h| *h == ips[i]) {
                continue;
            }
            let asked = ips.clone();
            ips[i] = self.cluster_ip(service, family, &ips[i]).await.map_err(|refusal| {
                let ip = &asked[i];
                let space = if ip.is_empty() { String::new() } else { format!(" {ip}") };
                let why = match refusal {
                    Refusal::NotInRange => "the provided network does not match the current range".to_owned(),
                    Refusal::Taken => "provided IP is already allocated".to_owned(),
                    Refusal::Full => return Status::internal("failed to allocate a serviceIP: range is full"),
                    Refusal::Status(status) => status.message,
                };
                let path = Path::new("spec").child("clusterIPs");
                let error = Error::invalid(&path, &json!(asked), format!("failed to allocate IP{space}: {why}"));
                Status::invalid("", "Service", metadata::text(service, "name"), &[error])
            })?;
        }
        self.surplus.addresses.extend(had.into_iter().skip(families.len()));
        let spec = spec_mut(service);
        if let Some(first) = ips.first() {
            spec.insert("clusterIP".into(), first.as_str().into());
        }
        spec.insert("clusterIPs".into(), json!(ips));
        Ok(())
    }

    async fn cluster_ip(&mut self, service: &Value, family_name: &str, asked: &str) -> Result<String, Refusal> {
        let cidrs: Vec<IpNet> = service_cidrs(self.pipeline).into_iter().filter(|c| family(c) == family_name).collect();
        let Some(store) = self.held.ip_store.clone() else { return Err(Refusal::Full) };
        if !asked.is_empty() {
            let ip: IpAddr = asked.parse().map_err(|_| Refusal::NotInRange)?;
            let inside = cidrs.iter().any(|c| {
                let (first, last) = usable(c);
                c.contains(&ip) && (first..=last).contains(&number(ip))
            });
            if !inside {
                return Err(Refusal::NotInRange);
            }
            self.take_address(service, &store, asked).await?;
            return Ok(asked.to_owned());
        }
        for cidr in &cidrs {
            let (first, last) = usable(cidr);
            if first > last {
                continue;
            }
            // The lower part is left to those who choose their address.
            let static_part = ((last - first + 1) / 16).clamp(16, 256).min(last - first);
            for _ in 0..RANDOM_TRIES {
                let candidate = rand::rng().random_range(first + static_part..=last);
                if let Some(ip) = self.try_address(service, &store, cidr, candidate).await? {
                    return Ok(ip);
                }
            }
            // Nearly full: search in order, the static part last.
            for candidate in (first + static_part..=last).chain(first..first + static_part).take(1 << 20) {
                if let Some(ip) = self.try_address(service, &store, cidr, candidate).await? {
                    return Ok(ip);
                }
            }
        }
        Err(Refusal::Full)
    }

    async fn try_address(
        &mut self,
        service: &Value,
        store: &Arc<Store>,
        cidr: &IpNet,
        candidate: u128,
    ) -> Result<Option<String>, Refusal> {
        let ip = address(cidr, candidate).to_string();
        if store.get_cached("", &ip).is_some() {
            return Ok(None);
        }
        match self.take_address(service, store, &ip).await {
            Ok(()) => Ok(Some(ip)),
            Err(Refusal::Taken) => Ok(None),
            Err(other) => Err(other),
        }
    }

    async fn take_address(&mut self, service: &Value, store: &Arc<Store>, ip: &str) -> Result<(), Refusal> {
        if self.dry_run {
            return match store.get("", ip).await.map_err(Refusal::Status)? {
                Some(_) => Err(Refusal::Taken),
                None => Ok(()),
            };
        }
        let namespace = self.call.namespace();
        match create_address(self.pipeline, self.call.ctx.now, namespace, metadata::text(service, "name"), ip).await {
            Ok(()) => {
                self.held.addresses.push(ip.to_owned());
                Ok(())
            }
            Err(status) if status.is_already_exists() => Err(Refusal::Taken),
            Err(status) => Err(Refusal::Status(status)),
        }
    }

    /// Takes node ports for the ports of the service that need one.
    pub(super) async fn node_ports(&mut self, service: &mut Value, old: Option<&Value>) -> Result<(), Status> {
        let had: Vec<i64> = old.map(|o| Spec(o).node_ports()).unwrap_or_default();
        if !Spec(service).has_node_ports() {
            if old.is_some_and(|o| Spec(o).has_node_ports()) {
                self.surplus.ports.extend(had.iter().map(|p| *p as u16));
            }
            return Ok(());
        }
        let allocates = Spec(service).needs_node_port();
        let mut ports: Vec<Value> = Spec(service).ports().to_vec();
        // Two ports of one number, of different protocols, share a node port.
        let mut by_port: Vec<(i64, i64)> = Vec::new();
        let port_number = |p: &Value| p.get("port").and_then(Value::as_i64).unwrap_or(0);
        for i in 0..ports.len() {
            let asked = node_port(&ports[i]);
            if asked == 0 && !allocates {
                continue;
            }
            let own = port_number(&ports[i]);
            let shared = by_port.iter().find(|(p, _)| *p == own).map(|(_, n)| *n);
            let wanted = match (asked, shared) {
                (0, Some(shared)) if old.is_none() => {
                    ports[i]["nodePort"] = shared.into();
                    continue;
                }
                (asked, Some(shared)) if asked == shared => continue,
                (0, None) if old.is_none() => {
                    ports.iter().filter(|p| port_number(p) == own).map(node_port).find(|n| *n != 0).unwrap_or(0)
                }
                (asked, _) => asked,
            };
            let taken_here = self.held.ports.contains(&(wanted as u16)) && old.is_some();
            let given = if wanted != 0 && (had.contains(&wanted) || taken_here) {
                wanted
            } else if wanted != 0 {
                self.take_port(wanted).await.map_err(|why| match why {
                    PortRefusal::Why(why) => {
                        let path = Path::new("spec").child("ports").index(i).child("nodePort");
                        let error = Error::invalid(&path, wanted, why);
                        Status::invalid("", "Service", metadata::text(service, "name"), &[error])
                    }
                    PortRefusal::Status(status) => status,
                })?;
                wanted
            } else {
                self.any_port().await?
            };
            ports[i]["nodePort"] = given.into();
            if shared.is_none() {
                by_port.push((own, given));
            }
        }
        let now: Vec<i64> = ports.iter().map(node_port).collect();
        self.surplus.ports.extend(had.iter().filter(|p| !now.contains(p)).map(|p| *p as u16));
        if !ports.is_empty() {
            spec_mut(service).insert("ports".into(), ports.into());
        }
        Ok(())
    }

    /// The port at which a node says whether it has endpoints of the service.
    pub(super) async fn health_check_port(&mut self, service: &mut Value, old: Option<&Value>) -> Result<(), Status> {
        let needed = old.is_some_and(|o| Spec(o).needs_health_check());
        let had = old.map_or(0, |o| Spec(o).number("healthCheckNodePort"));
        match (needed, Spec(service).needs_health_check()) {
            (false, true) => {
                let asked = Spec(service).number("healthCheckNodePort");
                if asked != 0 {
                    return self.take_port(asked).await.map_err(|why| match why {
                        PortRefusal::Why(why) => Status::internal(format!(
                            "failed to allocate requested HealthCheck NodePort {asked}: {why}"
                        )),
                        PortRefusal::Status(status) => status,
                    });
                }
                let port = self.any_port().await?;
                spec_mut(service).insert("healthCheckNodePort".into(), port.into());
            }
            (true, false) => {
                self.surplus.ports.push(had as u16);
                if Spec(service).number("healthCheckNodePort") == had {
                    spec_mut(service).remove("healthCheckNodePort");
                }
            }
            _ => {}
        }
        Ok(())
    }

    async fn take_port(&mut self, port: i64) -> Result<(), PortRefusal> {
        let range = &self.pipeline.network.node_ports;
        let inside = u16::try_from(port).ok().filter(|p| range.contains(p));
        let Some(port) = inside else {
            return Err(PortRefusal::Why(format!(
                "provided port is not in the valid range. The range of valid ports is {}-{}",
                range.start(),
                range.end()
            )));
        };
        let taken = || PortRefusal::Why("provided port is already allocated".into());
        if self.held.ports.contains(&port) {
            return Err(taken());
        }
        let storage = self.call.store().storage();
        let unavailable = |e| PortRefusal::Status(crate::store::storage_status(e));
        if self.dry_run {
            let (entry, _) = storage.get(&port_key(self.call.store(), port), None).await.map_err(unavailable)?;
            return if entry.is_some() { Err(taken()) } else { Ok(()) };
        }
        let owner = format!("{}/{}", self.call.namespace(), self.call.name());
        let op = Op::Put { value: owner.into(), ttl: None };
        match storage.commit(vec![Write { key: port_key(self.call.store(), port), expect: Expect::Absent, op }]).await {
            Ok(_) => {
                self.held.ports.push(port);
                Ok(())
            }
            Err(coxswain_storage::Error::Conflict { .. }) => Err(taken()),
            Err(e) => Err(unavailable(e)),
        }
    }

    async fn any_port(&mut self) -> Result<i64, Status> {
        let range = self.pipeline.network.node_ports.clone();
        let (first, last) = (*range.start(), *range.end());
        let size = last - first + 1;
        // The lower part is left to those who choose their port.
        let static_part = if size < 128 { 0 } else { (size / 32).clamp(16, 128) };
        let random = std::iter::repeat_with(|| rand::rng().random_range(first + static_part..=last)).take(RANDOM_TRIES);
        let ordered = (first + static_part..=last).chain(first..first + static_part);
        for port in random.chain(ordered) {
            match self.take_port(i64::from(port)).await {
                Ok(()) => return Ok(i64::from(port)),
                Err(PortRefusal::Why(_)) => {}
                Err(PortRefusal::Status(status)) => return Err(status),
            }
        }
        Err(Status::internal("failed to allocate a nodePort: range is full"))
    }
}

enum PortRefusal {
    Why(String),
    Status(Status),
}

/// The networks of the ready ServiceCIDRs; those of the flags as long as there is none.
fn service_cidrs(pipeline: &Pipeline) -> Vec<IpNet> {
    let mut cidrs: Vec<IpNet> = Vec::new();
    if let Some(store) = pipeline.resources.store("networking.k8s.io", "servicecidrs") {
        let snapshot = store.cache().snapshot(store.feed().progress());
        for object in snapshot.objects.values() {
            let tree = object.tree();
            let conditions = tree.pointer("/status/conditions").and_then(Value::as_array);
            let ready = conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True");
            if !ready || metadata::is_deleting(&tree) {
                continue;
            }
            let texts = tree.pointer("/spec/cidrs").and_then(Value::as_array);
            cidrs.extend(texts.into_iter().flatten().filter_map(|t| t.as_str()?.parse::<IpNet>().ok()));
        }
    }
    for cidr in &pipeline.network.cidrs {
        if !cidrs.contains(cidr) {
            cidrs.push(*cidr);
        }
    }
    cidrs
}

/// A call that the server makes itself, through the same pipeline as any other.
fn own_call(served: Arc<Served>, namespace: &str, name: &str, verb: &str, now: jiff::Timestamp) -> Call {
    let gv = &served.ty.group_version;
    let info = RequestInfo {
        is_resource: true,
        verb: verb.into(),
        group: gv.group.to_string(),
        version: gv.version.to_string(),
        namespace: namespace.into(),
        resource: served.ty.plural.to_string(),
        name: name.into(),
        ..RequestInfo::default()
    };
    let user = User {
        name: "system:apiserver".into(),
        groups: vec!["system:masters".into(), "system:authenticated".into()],
        ..User::default()
    };
    let ctx = Context {
        user: Arc::new(user),
        info: Arc::new(info),
        dry_run: false,
        field_manager: "kube-apiserver".into(),
        now,
        warnings: Warnings::default(),
    };
    Call { ctx, served, headers: Default::default(), query: Query::default(), body: Default::default() }
}

async fn create_address(
    pipeline: &Pipeline,
    now: jiff::Timestamp,
    namespace: &str,
    service: &str,
    ip: &str,
) -> Result<(), Status> {
    let Some(served) = pipeline.resources.get("networking.k8s.io", "v1", "ipaddresses") else {
        return Err(Status::internal("ipaddresses are not served"));
    };
    let call = own_call(served, "", "", "create", now);
    let family = if ip.contains(':') { "IPv6" } else { "IPv4" };
    let object = json!({
        "kind": "IPAddress",
        "apiVersion": "networking.k8s.io/v1",
        "metadata": {
            "name": ip,
            "labels": {"ipaddress.kubernetes.io/ip-family": family, "ipaddress.kubernetes.io/managed-by": MANAGED_BY},
        },
        "spec": {"parentRef": {"resource": "services", "namespace": namespace, "name": service}},
    });
    let options = WriteOptions::of_query(&Query::default(), OptionsKind::Create)?;
    pipeline.create_decoded(&call, object, &options).await.map(drop)
}

/// Gives back what a deleted service had.
pub(super) async fn release_service(pipeline: &Pipeline, service: &Value) {
    let s = Spec(service);
    let mut held = Held::new(pipeline);
    if s.kind() != "ExternalName" && !s.is_headless() {
        held.addresses.extend(s.texts("clusterIPs").into_iter().map(str::to_owned));
    }
    held.ports.extend(s.node_ports().into_iter().map(|p| p as u16));
    if s.number("healthCheckNodePort") != 0 {
        held.ports.push(s.number("healthCheckNodePort") as u16);
    }
    let Some(store) = held.ip_store.clone() else { return };
    release(&store, &held.addresses, &held.ports).await;
}

/// What is taken although no service has it.
#[derive(Debug, Default)]
pub struct Leaks {
    addresses: HashSet<String>,
    ports: HashSet<u16>,
}

impl Leaks {
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty() && self.ports.is_empty()
    }
}

/// Takes what services have but nobody holds: run at start, before the server is ready (upstream: the `repair`
/// controllers). Returns what is held for no service; another server may just be creating that service, so it is only
/// given back by [`release_leaks`].
pub async fn repair(pipeline: &Pipeline) -> Result<Leaks, Status> {
    let (Some(services), Some(addresses)) =
        (pipeline.resources.store("", "services"), pipeline.resources.store("networking.k8s.io", "ipaddresses"))
    else {
        return Ok(Leaks::default());
    };
    let revision = services.catch_up().await?;
    let now = jiff::Timestamp::now();
    let mut ips: HashSet<String> = HashSet::new();
    let mut ports: HashMap<u16, String> = HashMap::new();
    for object in services.cache().snapshot(revision).objects.values() {
        let tree = object.tree();
        let s = Spec(&tree);
        let owner = format!("{}/{}", object.namespace(), object.name());
        let health = s.number("healthCheckNodePort");
        let of_service = s.node_ports().into_iter().chain((health != 0).then_some(health));
        ports.extend(of_service.map(|p| (p as u16, owner.clone())));
        if s.kind() == "ExternalName" || s.is_headless() {
            continue;
        }
        for ip in s.texts("clusterIPs") {
            ips.insert(ip.to_owned());
            if addresses.get("", ip).await?.is_none() {
                create_address(pipeline, now, object.namespace(), object.name(), ip).await?;
            }
        }
    }
    let mut leaks = Leaks::default();
    for object in addresses.cache().snapshot(revision).objects.values() {
        let ours = object.label("ipaddress.kubernetes.io/managed-by") == Some(MANAGED_BY);
        if ours && !ips.contains(object.name()) {
            leaks.addresses.insert(object.name().to_owned());
        }
    }
    let storage = services.storage();
    let prefix = ports_prefix(&services);
    let kept = storage.list(&prefix, ListOptions::default()).await.map_err(crate::store::storage_status)?;
    let taken: HashSet<u16> = kept.entries.iter().filter_map(|e| e.key[prefix.len()..].parse().ok()).collect();
    for (port, owner) in &ports {
        if !taken.contains(port) {
            let op = Op::Put { value: owner.clone().into(), ttl: None };
            let write = Write { key: port_key(&services, *port), expect: Expect::Any, op };
            storage.commit(vec![write]).await.map_err(crate::store::storage_status)?;
        }
    }
    leaks.ports = taken.into_iter().filter(|port| !ports.contains_key(port)).collect();
    Ok(leaks)
}

/// Gives back what was held for no service before and is so still.
pub async fn release_leaks(pipeline: &Pipeline, before: Leaks) -> Result<(), Status> {
    let now = repair(pipeline).await?;
    let addresses: Vec<String> = now.addresses.intersection(&before.addresses).cloned().collect();
    let ports: Vec<u16> = now.ports.intersection(&before.ports).copied().collect();
    if let Some(store) = pipeline.resources.store("networking.k8s.io", "ipaddresses") {
        tracing::info!(?addresses, ?ports, "giving back what no service has");
        release(&store, &addresses, &ports).await;
    }
    Ok(())
}
