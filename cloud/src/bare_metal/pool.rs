//! The addresses for load balancers, and which Service has which.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;

/// Addresses of one range beyond this many are not looked at.
const RANGE_MAX: u128 = 1 << 16;

#[derive(Debug, Default)]
pub struct Pool {
    ranges: Vec<(IpAddr, IpAddr)>,
    /// By the UID of the Service.
    held: HashMap<String, Vec<IpAddr>>,
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

fn address(number: u128, like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => IpAddr::V4((number as u32).into()),
        IpAddr::V6(_) => IpAddr::V6(number.into()),
    }
}

fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// `A-B`, `A/BITS` or `A`. Of a subnet every address counts: a pool is no network of its own.
fn range(text: &str) -> Option<(IpAddr, IpAddr)> {
    if let Some((first, last)) = text.split_once('-') {
        let (first, last): (IpAddr, IpAddr) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        return (first.is_ipv4() == last.is_ipv4() && first <= last).then_some((first, last));
    }
    if text.contains('/') {
        let network: IpNet = text.trim().parse().ok()?;
        return Some((network.network(), network.broadcast()));
    }
    let one: IpAddr = text.trim().parse().ok()?;
    Some((one, one))
}

impl Pool {
    pub fn parse(texts: &[String]) -> Result<Self, String> {
        let ranges = texts.iter().map(|text| {
            range(text).ok_or_else(|| format!("{text:?} is no range of addresses: write A-B, A/BITS or A"))
        });
        Ok(Self { ranges: ranges.collect::<Result<_, _>>()?, held: HashMap::new() })
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        self.ranges
            .iter()
            .any(|(first, last)| first.is_ipv4() == address.is_ipv4() && *first <= address && address <= *last)
    }

    fn is_free(&self, address: IpAddr) -> bool {
        !self.held.values().any(|held| held.contains(&address))
    }

    pub fn held_by(&self, uid: &str) -> Option<Vec<IpAddr>> {
        self.held.get(uid).cloned()
    }

    /// Notes what a Service has already. What is not of the pool, or somebody else's, it does not keep.
    pub fn keep(&mut self, uid: &str, addresses: &[IpAddr]) {
        let kept: Vec<IpAddr> = addresses.iter().copied().filter(|a| self.contains(*a) && self.is_free(*a)).collect();
        if !kept.is_empty() {
            self.held.insert(uid.to_owned(), kept);
        }
    }

    /// One address of each family that the pool has, the same ones at every call while they fit.
    pub fn take(&mut self, uid: &str, families: &[String], wanted: Option<&str>) -> Result<Vec<IpAddr>, String> {
        let wanted: Option<IpAddr> = match wanted {
            Some(text) => Some(text.parse().map_err(|_| format!("loadBalancerIP {text:?} is no address"))?),
            None => None,
        };
        let held = self.held.remove(uid).unwrap_or_default();
        let mut taken = Vec::new();
        for of in families {
            let asked = wanted.filter(|address| family(*address) == of);
            let present = held.iter().copied().find(|address| family(*address) == of);
            let next = match (asked, present) {
                (Some(asked), _) if !self.contains(asked) => {
                    Err(format!("{asked} is not in the pool of load balancer addresses"))
                }
                (Some(asked), _) if !self.is_free(asked) => Err(format!("{asked} is the address of another Service")),
                (Some(asked), _) => Ok(Some(asked)),
                (None, Some(present)) => Ok(Some(present)),
                (None, None) => Ok(self.free(of)),
            };
            match next {
                Ok(address) => taken.extend(address),
                Err(error) => {
                    // What it had stays its own until it can have what it asks for.
                    self.keep(uid, &held);
                    return Err(error);
                }
            }
        }
        if taken.is_empty() {
            return Err(format!("no load balancer address is free for {}", families.join(", ")));
        }
        self.held.insert(uid.to_owned(), taken.clone());
        Ok(taken)
    }

    fn free(&self, of: &str) -> Option<IpAddr> {
        let ranges = self.ranges.iter().filter(|(first, _)| family(*first) == of);
        ranges
            .flat_map(|(first, last)| {
                let (low, high) = (number(*first), number(*last));
                (low..=high.min(low + RANGE_MAX - 1)).map(|number| address(number, *first))
            })
            .find(|address| self.is_free(*address))
    }

    pub fn give_back(&mut self, uid: &str) {
        self.held.remove(uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(texts: &[&str]) -> Pool {
        Pool::parse(&texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    fn v4() -> Vec<String> {
        vec!["IPv4".to_owned()]
    }

    #[test]
    fn ranges_are_written_in_three_ways() {
        let pool = pool(&["192.0.2.1-192.0.2.3", "198.51.100.0/30", "2001:db8::7"]);
        for (address, inside) in [
            ("192.0.2.3", true),
            ("192.0.2.4", false),
            ("198.51.100.3", true),
            ("2001:db8::7", true),
            ("2001:db8::8", false),
        ] {
            assert_eq!(pool.contains(address.parse().unwrap()), inside, "{address}");
        }
        for wrong in ["192.0.2.3-192.0.2.1", "192.0.2.1-::1", "x", "192.0.2.0/40"] {
            assert!(Pool::parse(&[wrong.to_owned()]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn nobody_gets_what_another_has() {
        let mut pool = pool(&["192.0.2.1-192.0.2.2"]);
        pool.keep("old", &["192.0.2.1".parse().unwrap(), "203.0.113.9".parse().unwrap()]);
        assert_eq!(pool.take("new", &v4(), None).unwrap(), ["192.0.2.2".parse::<IpAddr>().unwrap()]);
        assert!(pool.take("third", &v4(), None).is_err());
        assert!(pool.take("third", &v4(), Some("192.0.2.1")).unwrap_err().contains("another Service"));
        pool.give_back("old");
        assert_eq!(pool.take("third", &v4(), Some("192.0.2.1")).unwrap(), ["192.0.2.1".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn a_wish_that_cannot_be_met_costs_nothing() {
        let mut pool = pool(&["192.0.2.1"]);
        let first = pool.take("a", &v4(), None).unwrap();
        assert!(pool.take("a", &v4(), Some("192.0.2.99")).is_err());
        assert_eq!(pool.held_by("a"), Some(first));
    }

    #[test]
    fn both_families_where_the_pool_has_them() {
        let mut pool = pool(&["192.0.2.1", "2001:db8::/120"]);
        let families = vec!["IPv4".to_owned(), "IPv6".to_owned()];
        assert_eq!(pool.take("a", &families, None).unwrap().len(), 2);
        assert_eq!(pool.take("b", &families, None).unwrap().len(), 1);
    }
}
