//! IP addresses that no endpoint and no external address may have (upstream: `ValidateNonSpecialIP`).

use coxswain_api::field::{Error, ErrorList, View};
use coxswain_api::names::ip::parse_ip_sloppy;
use std::net::IpAddr;

pub fn non_special_ip(ip: &View<'_>, errors: &mut ErrorList) {
    let text = ip.str();
    let mut wrong = |why: String| errors.push(Error::invalid(ip.path(), text, why));
    let Some(parsed) = parse_ip_sloppy(text) else { return wrong("must be a valid IP address".into()) };
    let address = parsed.ip;
    if address.is_unspecified() {
        wrong(format!("may not be unspecified ({text})"));
    }
    if address.is_loopback() {
        wrong("may not be in the loopback range (127.0.0.0/8, ::1/128)".into());
    }
    let (link_local, link_local_multicast) = match address {
        IpAddr::V4(v4) => (v4.is_link_local(), v4.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(v6) => (v6.segments()[0] & 0xffc0 == 0xfe80, v6.segments()[0] & 0xff0f == 0xff02),
    };
    if link_local {
        wrong("may not be in the link-local range (169.254.0.0/16, fe80::/10)".into());
    }
    if link_local_multicast {
        wrong("may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)".into());
    }
}
