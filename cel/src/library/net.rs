//! Addresses and networks (upstream: `apiserver/pkg/cel/library/ip.go` and `cidr.go` on Go's `net/netip`).

use super::Found;
use crate::eval::Error;
use crate::value::Value;
use coxswain_api::field::go_quote;
use ipnet::IpNet;
use std::fmt;
use std::net::IpAddr;

/// A network, with the address that it was written with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    address: IpAddr,
    pub(crate) bits: u8,
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

fn address(text: &str) -> Result<IpAddr, Error> {
    if text.contains('%') {
        return Err(Error::new(format!("IP address {} with zone value is not allowed", go_quote(text))));
    }
    let quoted = go_quote(text);
    let parsed: IpAddr = text.parse().map_err(|_| {
        let why = if text.contains(':') || text.contains('.') { "unexpected character" } else { "unable to parse IP" };
        Error::new(format!("IP Address {quoted} parse error during conversion from string: ParseAddr({quoted}): {why}"))
    })?;
    if is_mapped(parsed) {
        return Err(Error::new(format!("IPv4-mapped IPv6 address {quoted} is not allowed")));
    }
    Ok(parsed)
}

fn is_mapped(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some())
}

fn cidr(text: &str) -> Result<Cidr, Error> {
    let quoted = go_quote(text);
    let told = |why: &str| {
        let why = format!("netip.ParsePrefix({quoted}): {why}");
        // Upstream wraps it twice.
        let inner = format!("network address parse error during conversion from string: {why}");
        Error::new(format!("network address parse error during conversion from string: {inner}"))
    };
    let (base, length) = text.rsplit_once('/').ok_or_else(|| told("no '/'"))?;
    let base: IpAddr = base.parse().map_err(|_| told(&format!("ParseAddr({}): unable to parse IP", go_quote(base))))?;
    let plain = length == "0" || (!length.starts_with('0') && length.bytes().all(|b| b.is_ascii_digit()));
    let bits: u8 = length
        .parse()
        .ok()
        .filter(|_| plain)
        .ok_or_else(|| told(&format!("bad bits after slash: {}", go_quote(length))))?;
    if bits > if base.is_ipv4() { 32 } else { 128 } {
        return Err(told("prefix length out of range"));
    }
    if is_mapped(base) {
        let why = format!("IPv4-mapped IPv6 address {quoted} is not allowed");
        return Err(Error::new(format!("network address parse error during conversion from string: {why}")));
    }
    Ok(Cidr { address: base, bits })
}

pub(super) fn read<'a>(name: &str, text: &str) -> Found<'a> {
    Ok(match name {
        "ip" => Value::Ip(address(text)?),
        "isIP" => Value::Bool(address(text).is_ok()),
        "ip.isCanonical" => Value::Bool(address(text)?.to_string() == text),
        "cidr" => Value::Cidr(cidr(text)?),
        _ => Value::Bool(cidr(text).is_ok()),
    })
}

pub(super) fn of_ip<'a>(name: &str, ip: IpAddr) -> Found<'a> {
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let link_local_multicast = match ip {
        IpAddr::V4(v4) => matches!(v4.octets(), [224, 0, 0, _]),
        IpAddr::V6(v6) => v6.segments()[0] & 0xff0f == 0xff02,
    };
    let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    Ok(match name {
        "family" => Value::Int(if ip.is_ipv4() { 4 } else { 6 }),
        "isUnspecified" => Value::Bool(ip.is_unspecified()),
        "isLoopback" => Value::Bool(ip.is_loopback()),
        "isLinkLocalMulticast" => Value::Bool(link_local_multicast),
        "isLinkLocalUnicast" => Value::Bool(link_local),
        "isGlobalUnicast" => {
            Value::Bool(!ip.is_unspecified() && !ip.is_loopback() && !ip.is_multicast() && !link_local && !broadcast)
        }
        _ => return Err(Error::no_overload()),
    })
}

impl Cidr {
    fn net(self) -> Result<IpNet, Error> {
        IpNet::new(self.address, self.bits).map_err(|_| Error::new("prefix length out of range"))
    }

    pub(super) fn call<'a>(self, name: &str, rest: &[Value<'a>]) -> Found<'a> {
        let net = self.net()?;
        let within = |other: Cidr| Ok::<_, Error>(Value::Bool(net.contains(&other.net()?)));
        Ok(match (name, rest) {
            // Upstream declares `ip` of a network, and finds nothing to call.
            ("ip", []) => return Err(Error::no_overload()),
            ("prefixLength", []) => Value::Int(self.bits.into()),
            ("masked", []) => Value::Cidr(Cidr { address: net.network(), bits: self.bits }),
            ("containsIP", [Value::Ip(ip)]) => Value::Bool(net.contains(ip)),
            ("containsIP", [Value::Text(text)]) => Value::Bool(net.contains(&address(text)?)),
            ("containsCIDR", [Value::Cidr(other)]) => within(*other)?,
            ("containsCIDR", [Value::Text(text)]) => within(cidr(text)?)?,
            _ => return Err(Error::no_overload()),
        })
    }
}
