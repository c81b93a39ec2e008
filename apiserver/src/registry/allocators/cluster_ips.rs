//! Cluster IPs: each is an `IPAddress` object (upstream: `ipallocator.go`, the `MultiCIDRServiceAllocator`).

use super::{Taking, family};
use crate::registry::core::service::{Spec, spec_mut};
use crate::registry::metadata;
use crate::registry::options::{OptionsKind, Query, WriteOptions};
use crate::registry::pipeline::{Call, Pipeline};
use crate::request::{Context, RequestInfo, User, Warnings};
use crate::resources::Served;
use crate::store::Store;
use coxswain_api::field::{Error, Path};
use coxswain_api::{Status, Value, json};
use ipnet::IpNet;
use rand::Rng;
use std::net::IpAddr;
use std::sync::Arc;

pub(super) const MANAGED_BY: &str = "ipallocator.k8s.io";
pub(super) const MANAGED_BY_LABEL: &str = "ipaddress.kubernetes.io/managed-by";
pub(super) const FAMILY_LABEL: &str = "ipaddress.kubernetes.io/ip-family";
/// How many random addresses are tried before the range is searched in order.
const RANDOM_TRIES: usize = 64;

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
    NotInRangeOf(IpAddr, IpNet),
    Taken,
    Full,
    Status(Status),
}

impl Taking<'_> {
    /// Takes the addresses that the service asks for, or any, one for each of its families.
    pub(in crate::registry) async fn cluster_ips(
        &mut self,
        service: &mut Value,
        old: Option<&Value>,
    ) -> Result<(), Status> {
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
                    Refusal::NotInRangeOf(ip, cidr) => {
                        format!("the provided IP ({ip}) is not in the valid range. The range of valid IPs is {cidr}")
                    }
                    Refusal::Taken => "provided IP is already allocated".to_owned(),
                    Refusal::Full => {
                        let name = coxswain_api::field::go_quote(metadata::text(service, "name"));
                        return Status::internal(format!(
                            "failed to allocate a serviceIP for Service {name}: range is full"
                        ));
                    }
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
                // A dry run asks one network, and says which.
                return Err(match cidrs.first() {
                    Some(cidr) if self.dry_run => Refusal::NotInRangeOf(ip, *cidr),
                    _ => Refusal::NotInRange,
                });
            }
            self.take_address(service, asked).await?;
            return Ok(asked.to_owned());
        }
        // A dry run searches nothing: the address of the network itself stands for whichever would be found.
        if self.dry_run {
            return cidrs.first().map(|cidr| cidr.network().to_string()).ok_or(Refusal::Full);
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
        match self.take_address(service, &ip).await {
            Ok(()) => Ok(Some(ip)),
            Err(Refusal::Taken) => Ok(None),
            Err(other) => Err(other),
        }
    }

    async fn take_address(&mut self, service: &Value, ip: &str) -> Result<(), Refusal> {
        if self.dry_run {
            return Ok(());
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
}

/// The networks of the ready ServiceCIDRs; those of the flags as long as there is none.
pub(super) fn service_cidrs(pipeline: &Pipeline) -> Vec<IpNet> {
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

pub(super) async fn create_address(
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
            "labels": {(FAMILY_LABEL): family, (MANAGED_BY_LABEL): MANAGED_BY},
        },
        "spec": {"parentRef": {"resource": "services", "namespace": namespace, "name": service}},
    });
    let options = WriteOptions::of_query(&Query::default(), OptionsKind::Create)?;
    pipeline.create_decoded(&call, object, &options).await.map(drop)
}
