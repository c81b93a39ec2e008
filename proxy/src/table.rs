//! The table of one address family as it was last applied, and the scripts that change it: the whole at the start, then
//! only what differs.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;

use coxswain_client::ObjectKey;

use crate::nft::TABLE;
use crate::rules::{
    CLUSTER_IPS, Desired, FIREWALL_IPS, NO_ENDPOINT_NODEPORTS, NO_ENDPOINT_SERVICES, SERVICE_IPS, SERVICE_NODEPORTS,
};

/// The bit of the packet mark by which packets to be masqueraded are known; kubelet and others leave it to the proxy.
pub const MASQUERADE_MARK: u32 = 0x4000;

#[derive(Debug)]
pub struct Table {
    ipv6: bool,
    /// Pods' addresses that are masqueraded towards the outside.
    masqueraded_cidr: Option<String>,
    services: HashMap<ObjectKey, Desired>,
    /// Who wants an element, so that two services with one address never break a script: the first by key has it.
    wanted: HashMap<(&'static str, String), BTreeMap<ObjectKey, String>>,
}

/// A script in the order that references need.
#[derive(Default)]
struct Script {
    definitions: String,
    removed_elements: String,
    rules: String,
    added_elements: String,
    removed: String,
}

impl Table {
    pub fn new(ipv6: bool, masqueraded_cidr: Option<String>) -> Self {
        Self { ipv6, masqueraded_cidr, services: HashMap::new(), wanted: HashMap::new() }
    }

    fn family(&self) -> &'static str {
        if self.ipv6 { "ip6" } else { "ip" }
    }

    pub fn is_empty(&self) -> bool {
        self.services.is_empty()
    }

    pub fn service(&self, key: &ObjectKey) -> Option<&Desired> {
        self.services.get(key)
    }

    pub fn keys(&self) -> Vec<ObjectKey> {
        self.services.keys().cloned().collect()
    }

    /// Takes what services want now, and returns the script that makes it so; empty if nothing differs.
    pub fn update(&mut self, changes: Vec<(ObjectKey, Desired)>) -> String {
        let mut script = Script::default();
        let table = format!("{} {TABLE}", self.family());
        for (key, new) in changes {
            let old = self.services.remove(&key).unwrap_or_default();
            for (name, definition) in new.sets.iter().filter(|(name, _)| !old.sets.contains_key(*name)) {
                let _ = writeln!(script.definitions, "add set {table} {name} {{ {definition} }}");
            }
            for (name, rules) in &new.chains {
                let before = old.chains.get(name);
                if before == Some(rules) {
                    continue;
                }
                if before.is_none() {
                    let _ = writeln!(script.definitions, "add chain {table} {name}");
                } else {
                    let _ = writeln!(script.rules, "flush chain {table} {name}");
                }
                for rule in rules {
                    let _ = writeln!(script.rules, "add rule {table} {name} {rule}");
                }
            }
            for name in old.chains.keys().filter(|name| !new.chains.contains_key(*name)) {
                let _ = writeln!(script.rules, "flush chain {table} {name}");
                let _ = writeln!(script.removed, "delete chain {table} {name}");
            }
            for name in old.sets.keys().filter(|name| !new.sets.contains_key(*name)) {
                let _ = writeln!(script.removed, "delete set {table} {name}");
            }
            let touched: std::collections::BTreeSet<_> = old.elements.keys().chain(new.elements.keys()).collect();
            for element in touched {
                let wanted = self.wanted.entry(element.clone()).or_default();
                let before = wanted.values().next().cloned();
                match new.elements.get(element) {
                    Some(verdict) => drop(wanted.insert(key.clone(), verdict.clone())),
                    None => drop(wanted.remove(&key)),
                }
                let after = wanted.values().next().cloned();
                if wanted.is_empty() {
                    self.wanted.remove(element);
                }
                if before == after {
                    continue;
                }
                let (map, at) = element;
                if let Some(before) = before {
                    let _ =
                        writeln!(script.removed_elements, "delete element {table} {map} {{ {} }}", pair(at, &before));
                }
                if let Some(after) = after {
                    let _ = writeln!(script.added_elements, "add element {table} {map} {{ {} }}", pair(at, &after));
                }
            }
            if new != Desired::default() {
                self.services.insert(key, new);
            }
        }
        script.text()
    }

    /// The script that makes the table from nothing, whatever was there.
    pub fn whole(&self) -> String {
        let mut script = Script::default();
        let table = format!("{} {TABLE}", self.family());
        for desired in self.services.values() {
            for (name, definition) in &desired.sets {
                let _ = writeln!(script.definitions, "add set {table} {name} {{ {definition} }}");
            }
            for (name, rules) in &desired.chains {
                let _ = writeln!(script.definitions, "add chain {table} {name}");
                for rule in rules {
                    let _ = writeln!(script.rules, "add rule {table} {name} {rule}");
                }
            }
        }
        for ((map, at), wanted) in &self.wanted {
            if let Some(verdict) = wanted.values().next() {
                let _ = writeln!(script.added_elements, "add element {table} {map} {{ {} }}", pair(at, verdict));
            }
        }
        self.skeleton() + &script.text()
    }

    fn skeleton(&self) -> String {
        let (ip, address) = if self.ipv6 { ("ip6", "ipv6_addr") } else { ("ip", "ipv4_addr") };
        let own = if self.ipv6 {
            "fib daddr type local ip6 daddr != ::1"
        } else {
            "fib daddr type local ip daddr != 127.0.0.0/8"
        };
        let by_address = format!("type {address} . inet_proto . inet_service : verdict;");
        let by_port = "type inet_proto . inet_service : verdict;";
        let mark = MASQUERADE_MARK;
        let pods_out = self.masqueraded_cidr.as_ref().map_or(String::new(), |cidr| {
            let multicast = if self.ipv6 { "ff00::/8" } else { "224.0.0.0/4" };
            format!("{ip} saddr {cidr} {ip} daddr != {{ {cidr}, {multicast} }} masquerade fully-random\n")
        });
        format!(
            "add table {ip} {TABLE}\n\
             delete table {ip} {TABLE}\n\
             table {ip} {TABLE} {{\n\
             comment \"rules for services\"\n\
             set {CLUSTER_IPS} {{ type {address}; }}\n\
             map {SERVICE_IPS} {{ {by_address} }}\n\
             map {SERVICE_NODEPORTS} {{ {by_port} }}\n\
             map {NO_ENDPOINT_SERVICES} {{ {by_address} }}\n\
             map {NO_ENDPOINT_NODEPORTS} {{ {by_port} }}\n\
             map {FIREWALL_IPS} {{ {by_address} }}\n\
             chain mark-for-masquerade {{ meta mark set meta mark or {mark:#x}\n }}\n\
             chain reject-chain {{ reject\n }}\n\
             chain masquerading {{\n\
             meta mark & {mark:#x} != 0 goto masquerade-marked\n\
             {pods_out}\
             }}\n\
             chain masquerade-marked {{\n\
             meta mark set meta mark xor {mark:#x}\n\
             masquerade fully-random\n\
             }}\n\
             chain services {{\n\
             {ip} daddr . meta l4proto . th dport vmap @{SERVICE_IPS}\n\
             {own} meta l4proto . th dport vmap @{SERVICE_NODEPORTS}\n\
             }}\n\
             chain firewall-check {{ {ip} daddr . meta l4proto . th dport vmap @{FIREWALL_IPS}\n }}\n\
             chain service-endpoints-check {{ {ip} daddr . meta l4proto . th dport vmap @{NO_ENDPOINT_SERVICES}\n }}\n\
             chain nodeport-endpoints-check {{ {own} meta l4proto . th dport vmap @{NO_ENDPOINT_NODEPORTS}\n }}\n\
             chain cluster-ips-check {{ {ip} daddr @{CLUSTER_IPS} reject\n }}\n\
             chain filter-prerouting {{ type filter hook prerouting priority -110; ct state new jump firewall-check\n }}\n\
             chain filter-input {{ type filter hook input priority -110;\n\
             ct state new jump nodeport-endpoints-check\n\
             ct state new jump service-endpoints-check\n\
             }}\n\
             chain filter-forward {{ type filter hook forward priority -110;\n\
             ct state new jump service-endpoints-check\n\
             ct state new jump cluster-ips-check\n\
             }}\n\
             chain filter-output {{ type filter hook output priority -110;\n\
             ct state new jump service-endpoints-check\n\
             ct state new jump firewall-check\n\
             }}\n\
             chain filter-output-post-dnat {{ type filter hook output priority -90;\n\
             ct state new jump cluster-ips-check\n\
             }}\n\
             chain nat-prerouting {{ type nat hook prerouting priority -100; jump services\n }}\n\
             chain nat-output {{ type nat hook output priority -100; jump services\n }}\n\
             chain nat-postrouting {{ type nat hook postrouting priority 100; jump masquerading\n }}\n\
             }}\n"
        )
    }
}

fn pair(at: &str, verdict: &str) -> String {
    if verdict.is_empty() { at.to_owned() } else { format!("{at} : {verdict}") }
}

impl Script {
    fn text(self) -> String {
        self.definitions + &self.removed_elements + &self.rules + &self.added_elements + &self.removed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wants(element: &str, verdict: &str) -> Desired {
        let mut desired = Desired::default();
        desired.elements.insert((SERVICE_IPS, element.to_owned()), verdict.to_owned());
        desired
    }

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new("ns", name)
    }

    #[test]
    fn two_services_that_want_one_address_never_conflict() {
        let mut table = Table::new(false, None);
        let at = "10.0.0.1 . tcp . 80";
        assert!(table.update(vec![(key("b"), wants(at, "goto b"))]).contains("add element"));
        let script = table.update(vec![(key("a"), wants(at, "goto a"))]);
        assert_eq!(
            script,
            format!(
                "delete element ip kube-proxy service-ips {{ {at} : goto b }}\n\
                 add element ip kube-proxy service-ips {{ {at} : goto a }}\n"
            )
        );
        assert_eq!(table.update(vec![(key("b"), Desired::default())]), "");
        assert_eq!(table.whole().matches("add element").count(), 1);
        assert!(table.update(vec![(key("a"), Desired::default())]).starts_with("delete element"));
        assert!(table.is_empty());
    }

    #[test]
    fn only_what_differs_is_written() {
        let mut table = Table::new(false, None);
        let with = |rules: &[&str]| Desired {
            chains: BTreeMap::from([("c".to_owned(), rules.iter().map(|r| (*r).to_owned()).collect())]),
            ..Desired::default()
        };
        table.update(vec![(key("a"), with(&["one"]))]);
        assert_eq!(table.update(vec![(key("a"), with(&["one"]))]), "");
        assert_eq!(
            table.update(vec![(key("a"), with(&["two"]))]),
            "flush chain ip kube-proxy c\nadd rule ip kube-proxy c two\n"
        );
        assert_eq!(
            table.update(vec![(key("a"), Desired::default())]),
            "flush chain ip kube-proxy c\ndelete chain ip kube-proxy c\n"
        );
    }
}
