//! IP addresses and networks as upstream checks them (upstream: `apimachinery/pkg/util/validation/ip.go` and
//! `k8s.io/utils/net`, whose "sloppy" parsers take leading zeros).

use crate::field::{Error, ErrorList, Path};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An address and whether it was written as an IPv4 address in IPv6 clothes (`::ffff:1.2.3.4`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParsedIp {
    /// With a mapped IPv4 address already taken out, as Go's `net.IP` prints it.
    pub ip: IpAddr,
    pub mapped: bool,
    /// Some part of an IPv4 address has leading zeros.
    pub leading_zeros: bool,
}

fn sloppy_v4(text: &str) -> Option<(Ipv4Addr, bool)> {
    let mut octets = [0u8; 4];
    let mut parts = text.split('.');
    let mut zeros = false;
    for octet in &mut octets {
        let part = parts.next()?;
        if part.is_empty() || !part.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        zeros |= part.len() > 1 && part.starts_with('0');
        let digits = part.trim_start_matches('0');
        *octet = if digits.is_empty() { 0 } else { digits.parse().ok()? };
    }
    if parts.next().is_some() {
        return None;
    }
    Some((Ipv4Addr::from(octets), zeros))
}

/// Parses an address; IPv4 parts may have leading zeros.
pub fn parse_ip_sloppy(text: &str) -> Option<ParsedIp> {
    if !text.contains(':') {
        let (ip, leading_zeros) = sloppy_v4(text)?;
        return Some(ParsedIp { ip: ip.into(), mapped: false, leading_zeros });
    }
    // An embedded IPv4 tail may have leading zeros too: it is rewritten before the strict parser sees it.
    let (head, tail) = text.rsplit_once(':')?;
    let (strict, leading_zeros) = if tail.contains('.') {
        let (v4, zeros) = sloppy_v4(tail)?;
        (format!("{head}:{v4}"), zeros)
    } else {
        (text.to_owned(), false)
    };
    let v6: Ipv6Addr = strict.parse().ok()?;
    Some(match v6.to_ipv4_mapped() {
        Some(v4) => ParsedIp { ip: v4.into(), mapped: true, leading_zeros },
        None => ParsedIp { ip: v6.into(), mapped: false, leading_zeros },
    })
}

/// Parses `address/length`. The length of a mapped address counts all 128 bits.
pub fn parse_cidr_sloppy(text: &str) -> Option<(ParsedIp, u8)> {
    let (address, length) = text.split_once('/')?;
    let ip = parse_ip_sloppy(address)?;
    if length.is_empty() || length.len() > 3 || !length.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let length: u16 = length.parse().ok()?;
    let max = if ip.ip.is_ipv4() && !ip.mapped { 32 } else { 128 };
    (length <= max).then_some((ip, length as u8))
}

/// The address with everything beyond the prefix cleared.
fn network(ip: IpAddr, length: u8) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => {
            let mask = if length == 0 { 0 } else { u32::MAX << (32 - u32::from(length.min(32))) };
            Ipv4Addr::from(u32::from(ip) & mask).into()
        }
        IpAddr::V6(ip) => {
            let mask = if length == 0 { 0 } else { u128::MAX << (128 - u32::from(length.min(128))) };
            Ipv6Addr::from(u128::from(ip) & mask).into()
        }
    }
}

/// The length of a prefix as Go prints it for the unmapped address.
fn unmapped_length(ip: ParsedIp, length: u8) -> u8 {
    if ip.mapped { length.saturating_sub(96) } else { length }
}

/// Checks an address of a newer field: canonical form only (upstream: `IsValidIP`).
pub fn check_ip(path: &Path, text: &str) -> ErrorList {
    let errors = check_ip_legacy(path, text, true, &[]);
    if !errors.is_empty() {
        return errors;
    }
    match parse_ip_sloppy(text) {
        Some(parsed) if parsed.ip.to_string() != text => {
            vec![Error::invalid(path, text, format!("must be in canonical form (\"{}\")", parsed.ip))]
        }
        _ => Vec::new(),
    }
}

/// Checks an address of an older field; `strict` refuses leading zeros and mapped addresses. What was there before
/// (`valid_old`) stays valid (upstream: `IsValidIPForLegacyField`).
pub fn check_ip_legacy(path: &Path, text: &str, strict: bool, valid_old: &[&str]) -> ErrorList {
    if valid_old.contains(&text) {
        return Vec::new();
    }
    let Some(parsed) = parse_ip_sloppy(text) else {
        return vec![Error::invalid(path, text, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)")];
    };
    let mut errors = Vec::new();
    if strict && parsed.leading_zeros {
        errors.push(Error::invalid(path, text, "must not have leading 0s"));
    } else if strict && parsed.mapped {
        errors.push(Error::invalid(path, text, "must not be an IPv4-mapped IPv6 address"));
    }
    errors
}

/// Checks a network of a newer field: canonical form only (upstream: `IsValidCIDR`).
pub fn check_cidr(path: &Path, text: &str) -> ErrorList {
    let errors = check_cidr_legacy(path, text, true, &[]);
    if !errors.is_empty() {
        return errors;
    }
    match parse_cidr_sloppy(text) {
        Some((ip, length)) => {
            let canonical = format!("{}/{}", network(ip.ip, unmapped_length(ip, length)), unmapped_length(ip, length));
            if canonical == text {
                Vec::new()
            } else {
                vec![Error::invalid(path, text, format!("must be in canonical form (\"{canonical}\")"))]
            }
        }
        None => Vec::new(),
    }
}

/// Checks a network of an older field (upstream: `IsValidCIDRForLegacyField`).
pub fn check_cidr_legacy(path: &Path, text: &str, strict: bool, valid_old: &[&str]) -> ErrorList {
    if valid_old.contains(&text) {
        return Vec::new();
    }
    let Some((ip, length)) = parse_cidr_sloppy(text) else {
        return vec![Error::invalid(path, text, "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)")];
    };
    if !strict {
        return Vec::new();
    }
    let written = text.rsplit_once('/').map_or("", |(_, l)| l);
    let why = if ip.leading_zeros || (written.len() > 1 && written.starts_with('0')) {
        "must not have leading 0s in IP or prefix length"
    } else if ip.mapped {
        "must not have an IPv4-mapped IPv6 address"
    } else if network(ip.ip, length) != ip.ip {
        "must not have bits set beyond the prefix length"
    } else {
        return Vec::new();
    };
    vec![Error::invalid(path, text, why)]
}

/// Checks an address with the length of its network, such as `10.9.8.7/24` (upstream: `IsValidInterfaceAddress`).
pub fn check_interface_address(path: &Path, text: &str) -> ErrorList {
    let Some((ip, length)) = parse_cidr_sloppy(text) else {
        let why = "must be a valid address in CIDR form, (e.g. 10.9.8.7/24 or 2001:db8::1/64)";
        return vec![Error::invalid(path, text, why)];
    };
    let canonical = format!("{}/{}", ip.ip, unmapped_length(ip, length));
    if canonical == text {
        return Vec::new();
    }
    vec![Error::invalid(path, text, format!("must be in canonical form (\"{canonical}\")"))]
}

/// Warnings about an address that is valid but written in an unusual way (upstream: `GetWarningsForIP`).
pub fn warnings_for_ip(path: &Path, text: &str) -> Vec<String> {
    let Some(parsed) = parse_ip_sloppy(text) else { return Vec::new() };
    if parsed.leading_zeros || parsed.mapped {
        return vec![format!("{path}: non-standard IP address \"{text}\" is invalid: use \"{}\"", parsed.ip)];
    }
    if parsed.ip.is_ipv6() && parsed.ip.to_string() != text {
        return vec![format!(
            "{path}: IPv6 address \"{text}\" should be in RFC 5952 canonical format (\"{}\")",
            parsed.ip
        )];
    }
    Vec::new()
}

/// Warnings about a network that is valid but written in an unusual way (upstream: `GetWarningsForCIDR`).
pub fn warnings_for_cidr(path: &Path, text: &str) -> Vec<String> {
    let Some((ip, length)) = parse_cidr_sloppy(text) else { return Vec::new() };
    let length_shown = unmapped_length(ip, length);
    let net = network(ip.ip, length_shown);
    let canonical = format!("{net}/{length_shown}");
    let mut warnings = Vec::new();
    if net != ip.ip {
        let bits = if ip.ip.is_ipv4() { 32 } else { 128 };
        warnings.push(format!(
            "{path}: CIDR value \"{text}\" is ambiguous in this context (should be \"{canonical}\" or \"{}/{bits}\"?)",
            ip.ip
        ));
    }
    let written = text.rsplit_once('/').map_or("", |(_, l)| l);
    if ip.leading_zeros || ip.mapped || (written.len() > 1 && written.starts_with('0')) {
        warnings.push(format!("{path}: non-standard CIDR value \"{text}\" is invalid: use \"{canonical}\""));
    }
    let whole = format!("{}/{length}", ip.ip);
    if warnings.is_empty() && ip.ip.is_ipv6() && whole != text {
        warnings
            .push(format!("{path}: IPv6 CIDR value \"{text}\" should be in RFC 5952 canonical format (\"{whole}\")"));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_sloppily_and_judged_strictly() {
        let p = Path::new("ip");
        assert!(check_ip(&p, "10.0.0.1").is_empty());
        assert!(check_ip_legacy(&p, "010.0.0.1", false, &[]).is_empty());
        assert_eq!(check_ip(&p, "010.0.0.1")[0].detail, "must not have leading 0s");
        assert_eq!(check_ip(&p, "::ffff:1.2.3.4")[0].detail, "must not be an IPv4-mapped IPv6 address");
        assert_eq!(check_ip(&p, "2001:DB8::1")[0].detail, "must be in canonical form (\"2001:db8::1\")");
        assert_eq!(check_cidr(&p, "10.0.0.1/8")[0].detail, "must not have bits set beyond the prefix length");
        assert!(check_cidr(&p, "10.0.0.0/8").is_empty());
        assert_eq!(check_cidr(&p, "10.0.0.0/33").len(), 1);
    }
}
