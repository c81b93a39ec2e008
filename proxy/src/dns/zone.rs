//! The names of the cluster: services, their ports and endpoints, pods, and addresses backwards. What is where follows the
//! DNS specification of Kubernetes, version 1.1.0.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;

use coxswain_client::k8s_openapi::api::core::v1::{Namespace, Service as ApiService};
use coxswain_client::k8s_openapi::api::discovery::v1::EndpointSlice;
use coxswain_client::{Informer, Informers, Selection};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use rand::seq::SliceRandom;

use crate::model::{BY_SERVICE, Protocol, Service, Slice};

/// How long an answer, or the absence of one, may be kept.
const TTL_SECONDS: u32 = 30;
const BY_IP: &str = "ip";
const VERSION: &str = "1.1.0";

pub enum Found {
    /// The name exists; perhaps without records of the type.
    Records {
        answers: Vec<Record>,
        additionals: Vec<Record>,
    },
    /// Another name stands for it, inside or outside the cluster.
    Alias(Box<Record>, Name),
    NoName,
    /// Not the cluster's to answer.
    Elsewhere,
    /// Too early to say.
    Unready,
}

pub struct Zone {
    domain: Name,
    labels: Vec<String>,
    services: Informer<Service>,
    slices: Informer<Slice>,
    namespaces: Informer<()>,
}

/// An endpoint of a service under its name.
struct Named {
    name: String,
    ip: IpAddr,
}

fn none() -> Found {
    Found::Records { answers: Vec::new(), additionals: Vec::new() }
}

impl Zone {
    /// Nothing if the domain is no name.
    pub fn new(domain: &str, informers: &Informers) -> Option<Self> {
        let mut domain = Name::from_str(domain.trim_end_matches('.')).ok()?;
        domain.set_fqdn(true);
        let services = informers.projected(Selection::default(), Service::new as fn(ApiService) -> Service);
        let slices = informers.projected(Selection::default(), Slice::new as fn(EndpointSlice) -> Slice);
        let namespaces = informers.projected(Selection::default(), |_: Namespace| ());
        services.store().add_index(BY_IP, |s| s.cluster_ips.iter().map(IpAddr::to_string).collect());
        slices.store().add_index(BY_SERVICE, Slice::index);
        slices
            .store()
            .add_index(BY_IP, |s| s.endpoints.iter().flat_map(|e| &e.addresses).map(IpAddr::to_string).collect());
        Some(Self { labels: labels_of(&domain), domain, services, slices, namespaces })
    }

    fn is_ready(&self) -> bool {
        self.services.has_synced() && self.slices.has_synced() && self.namespaces.has_synced()
    }

    pub fn soa(&self) -> Record {
        let name = |label: &str| self.name(label).unwrap_or_else(|| self.domain.clone());
        let serial = jiff::Timestamp::now().as_second() as u32;
        let soa = SOA::new(name("ns.dns"), name("hostmaster"), serial, 7200, 1800, 86400, TTL_SECONDS);
        Record::from_rdata(self.domain.clone(), TTL_SECONDS, RData::SOA(soa))
    }

    fn name(&self, prefix: &str) -> Option<Name> {
        let mut name = Name::from_ascii(prefix).ok()?.append_domain(&self.domain).ok()?;
        name.set_fqdn(true);
        Some(name)
    }

    pub fn find(&self, name: &Name, kind: RecordType) -> Found {
        let labels = labels_of(name);
        if let Some(ip) = reverse(&labels) {
            return if self.is_ready() { self.backwards(name, ip, kind) } else { Found::Unready };
        }
        let Some(rest) = labels.strip_suffix(self.labels.as_slice()) else { return Found::Elsewhere };
        if !self.is_ready() {
            return Found::Unready;
        }
        let rest: Vec<&str> = rest.iter().map(String::as_str).collect();
        match rest.as_slice() {
            [] => self.apex(name, kind),
            ["dns-version"] => match kind {
                RecordType::TXT => one(name, RData::TXT(TXT::new(vec![VERSION.to_owned()]))),
                _ => none(),
            },
            ["dns"] | ["svc"] | ["pod"] => none(),
            ["ns", "dns"] => {
                let ips = self.services.store().get("kube-system", "kube-dns").map(|s| s.cluster_ips.clone());
                addresses(name, ips.unwrap_or_default(), kind)
            }
            [namespace, "svc" | "pod"] if self.has_namespace(namespace) => none(),
            [ip, namespace, "pod"] if self.has_namespace(namespace) => match undashed(ip) {
                Some(ip) => addresses(name, vec![ip], kind),
                None => Found::NoName,
            },
            [before @ .., service, namespace, "svc"] => match self.services.store().get(namespace, service) {
                Some(service) => self.service(name, &service, before, kind),
                None => Found::NoName,
            },
            _ => Found::NoName,
        }
    }

    fn has_namespace(&self, namespace: &str) -> bool {
        self.namespaces.store().get("", namespace).is_some()
    }

    fn apex(&self, name: &Name, kind: RecordType) -> Found {
        match kind {
            RecordType::SOA => Found::Records { answers: vec![self.soa()], additionals: Vec::new() },
            RecordType::NS => match self.name("ns.dns") {
                Some(server) => one(name, RData::NS(NS(server))),
                None => none(),
            },
            _ => none(),
        }
    }

    fn slices(&self, service: &Service) -> Vec<Arc<Slice>> {
        self.slices.store().by_index(BY_SERVICE, &service.key.to_string())
    }

    fn service(&self, name: &Name, service: &Service, before: &[&str], kind: RecordType) -> Found {
        if let Some(external) = &service.external_name {
            let Some(mut target) = before.is_empty().then(|| Name::from_ascii(external).ok()).flatten() else {
                return Found::NoName;
            };
            target.set_fqdn(true);
            let record = Record::from_rdata(name.clone(), TTL_SECONDS, RData::CNAME(CNAME(target.clone())));
            return Found::Alias(Box::new(record), target);
        }
        match before {
            [] => self.port(name, service, None, kind),
            [port, protocol] if port.starts_with('_') && protocol.starts_with('_') => {
                self.port(name, service, Some((&port[1..], &protocol[1..])), kind)
            }
            [endpoint] => {
                let named = self.endpoints(service, |_, _| true).into_iter().filter(|(n, _)| n.name == *endpoint);
                let mut ips: Vec<IpAddr> = named.map(|(n, _)| n.ip).collect();
                ips.sort();
                ips.dedup();
                if ips.is_empty() { Found::NoName } else { addresses(name, ips, kind) }
            }
            _ => Found::NoName,
        }
    }

    /// The endpoints that are ready, with each of their ports that is wanted.
    fn endpoints(&self, service: &Service, wanted: impl Fn(&str, Protocol) -> bool) -> Vec<(Named, Option<u16>)> {
        let mut found = Vec::new();
        for slice in self.slices(service) {
            let ports: Vec<Option<u16>> = slice
                .ports
                .iter()
                .filter(|(name, protocol, _)| wanted(name, *protocol))
                .map(|(.., port)| *port)
                .collect();
            // A headless service may have no ports at all.
            let ports = if slice.ports.is_empty() { vec![None] } else { ports };
            for endpoint in slice.endpoints.iter().filter(|e| e.ready) {
                for ip in &endpoint.addresses {
                    for port in &ports {
                        let name = endpoint.hostname.clone().unwrap_or_else(|| dashed(*ip));
                        found.push((Named { name: name.to_lowercase(), ip: *ip }, *port));
                    }
                }
            }
        }
        found
    }

    /// The service itself, or one of its ports (name and protocol).
    fn port(&self, name: &Name, service: &Service, port: Option<(&str, &str)>, kind: RecordType) -> Found {
        let wanted = |name: &str, protocol: Protocol| {
            port.is_none_or(|(n, p)| name.eq_ignore_ascii_case(n) && protocol.as_str() == p)
        };
        let own = format!("{}.{}.svc", service.key.name, service.key.namespace);
        if !service.cluster_ips.is_empty() {
            let ports: Vec<u16> =
                service.ports.iter().filter(|p| wanted(&p.name, p.protocol)).map(|p| p.port).collect();
            if ports.is_empty() && port.is_some() {
                return Found::NoName;
            }
            return match (kind, self.name(&own)) {
                (RecordType::SRV, Some(target)) => {
                    let additionals = service.cluster_ips.iter().map(|ip| address(&target, *ip)).collect();
                    let ports = ports.into_iter().map(|port| (target.clone(), port)).collect();
                    Found::Records { answers: srv(name, ports), additionals }
                }
                _ => addresses(name, service.cluster_ips.clone(), kind),
            };
        }
        let endpoints = self.endpoints(service, wanted);
        // A headless service without endpoints has no name to resolve.
        if endpoints.is_empty() {
            return Found::NoName;
        }
        if kind == RecordType::SRV {
            let (mut targets, mut additionals) = (Vec::new(), Vec::new());
            for (endpoint, port) in endpoints {
                let Some(target) = self.name(&format!("{}.{own}", endpoint.name)) else { continue };
                let record = address(&target, endpoint.ip);
                if !additionals.contains(&record) {
                    additionals.push(record);
                }
                let entry = (target, port.unwrap_or(0));
                if !targets.contains(&entry) && port.is_some() {
                    targets.push(entry);
                }
            }
            return Found::Records { answers: srv(name, targets), additionals };
        }
        let mut ips: Vec<IpAddr> = endpoints.into_iter().map(|(e, _)| e.ip).collect();
        ips.sort();
        ips.dedup();
        addresses(name, ips, kind)
    }

    fn backwards(&self, name: &Name, ip: IpAddr, kind: RecordType) -> Found {
        let text = ip.to_string();
        let mut names = Vec::new();
        for service in self.services.store().by_index(BY_IP, &text) {
            names.extend(self.name(&format!("{}.{}.svc", service.key.name, service.key.namespace)));
        }
        if names.is_empty() {
            for slice in self.slices.store().by_index(BY_IP, &text) {
                let service = self.services.store().get_key(&slice.service);
                let headless = service.is_some_and(|s| s.cluster_ips.is_empty() && s.external_name.is_none());
                for endpoint in slice.endpoints.iter().filter(|e| headless && e.ready && e.addresses.contains(&ip)) {
                    let host = endpoint.hostname.clone().unwrap_or_else(|| dashed(ip));
                    let full = format!("{host}.{}.{}.svc", slice.service.name, slice.service.namespace);
                    names.extend(self.name(&full).filter(|n| !names.contains(n)));
                }
            }
        }
        if names.is_empty() {
            return Found::Elsewhere;
        }
        if kind != RecordType::PTR {
            return none();
        }
        let records = names.into_iter().map(|n| Record::from_rdata(name.clone(), TTL_SECONDS, RData::PTR(PTR(n))));
        Found::Records { answers: records.collect(), additionals: Vec::new() }
    }
}

fn labels_of(name: &Name) -> Vec<String> {
    name.iter().map(|label| String::from_utf8_lossy(label).to_lowercase()).collect()
}

fn one(name: &Name, data: RData) -> Found {
    Found::Records { answers: vec![Record::from_rdata(name.clone(), TTL_SECONDS, data)], additionals: Vec::new() }
}

fn address(name: &Name, ip: IpAddr) -> Record {
    let data = match ip {
        IpAddr::V4(ip) => RData::A(A(ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
    };
    Record::from_rdata(name.clone(), TTL_SECONDS, data)
}

/// The addresses of the asked kind in any order, so that clients which take the first spread.
fn addresses(name: &Name, ips: Vec<IpAddr>, kind: RecordType) -> Found {
    let wanted = |ip: &IpAddr| (ip.is_ipv4() && kind == RecordType::A) || (ip.is_ipv6() && kind == RecordType::AAAA);
    let mut answers: Vec<Record> = ips.into_iter().filter(wanted).map(|ip| address(name, ip)).collect();
    answers.shuffle(&mut rand::rng());
    Found::Records { answers, additionals: Vec::new() }
}

fn srv(name: &Name, targets: Vec<(Name, u16)>) -> Vec<Record> {
    let weight = (100 / targets.len().max(1)).max(1) as u16;
    let record =
        |(target, port)| Record::from_rdata(name.clone(), TTL_SECONDS, RData::SRV(SRV::new(0, weight, port, target)));
    targets.into_iter().map(record).collect()
}

fn dashed(ip: IpAddr) -> String {
    ip.to_string().replace(['.', ':'], "-")
}

fn undashed(text: &str) -> Option<IpAddr> {
    text.replace('-', ".")
        .parse::<Ipv4Addr>()
        .map(IpAddr::from)
        .ok()
        .or_else(|| text.replace('-', ":").parse::<Ipv6Addr>().map(IpAddr::from).ok())
}

/// The address that a name of `in-addr.arpa` or `ip6.arpa` stands for.
fn reverse(labels: &[String]) -> Option<IpAddr> {
    match labels {
        [d, c, b, a, zone, arpa] if zone == "in-addr" && arpa == "arpa" => {
            format!("{a}.{b}.{c}.{d}").parse::<Ipv4Addr>().ok().map(IpAddr::from)
        }
        [nibbles @ .., zone, arpa] if zone == "ip6" && arpa == "arpa" && nibbles.len() == 32 => {
            let mut bits = 0u128;
            for nibble in nibbles.iter().rev() {
                bits = bits << 4 | u128::from(u8::from_str_radix(nibble, 16).ok().filter(|n| *n < 16)?);
            }
            Some(Ipv6Addr::from(bits).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_their_names() {
        let name = |text: &str| labels_of(&Name::from_ascii(text).expect("a name"));
        assert_eq!(reverse(&name("4.3.2.1.in-addr.arpa.")), Some("1.2.3.4".parse().expect("an address")));
        let v6 = "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa.";
        assert_eq!(reverse(&name(v6)), Some("2001:db8::1".parse().expect("an address")));
        assert_eq!(reverse(&name("3.2.1.in-addr.arpa.")), None);
        for ip in ["10.244.1.7", "2001:db8:1:2:3:4:5:6", "fd00::1"] {
            let ip: IpAddr = ip.parse().expect("an address");
            assert_eq!(undashed(&dashed(ip)), Some(ip));
        }
        assert_eq!(undashed("web-0"), None);
    }
}
