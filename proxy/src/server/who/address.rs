//! From where a request comes, where a balancer stands in front of us.

use std::net::IpAddr;

use hyper::header::{HeaderMap, HeaderName};

use crate::config::{AddressFrom, Clients};
use crate::server::peer::Peer;

/// Addresses of one header that are looked at, from its end.
const HOPS_MAX: usize = 32;

/// The address of the client. `X-Forwarded-For` and its like are believed from the end as far as trusted proxies wrote
/// them: what stands in front of the first that is none may be anybody's claim.
///
/// # Errors
/// What the trusted proxy wrote is no address.
pub fn client(clients: &Clients, peer: &Peer, headers: &HeaderMap) -> Result<IpAddr, String> {
    // What was asked inside of a tunnel was written by who asked for it.
    if let Some(through) = &peer.through {
        return Ok(through.client);
    }
    let own = peer.address.ip().to_canonical();
    let Some(AddressFrom::Header(name)) = &clients.address_from else { return Ok(own) };
    if !clients.is_trusted_proxy(own) {
        return Ok(own);
    }
    let mut found = own;
    for text in backwards(headers, name).take(HOPS_MAX) {
        found = parse(text).ok_or_else(|| format!("the header {name} holds what is no address"))?;
        if !clients.is_trusted_proxy(found) {
            break;
        }
    }
    Ok(found)
}

fn backwards<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values: Vec<&str> = headers.get_all(name).iter().map(|value| value.to_str().unwrap_or("?")).collect();
    values.into_iter().rev().flat_map(|value| value.rsplit(',')).map(str::trim).filter(|text| !text.is_empty())
}

/// An address, with or without a port.
fn parse(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse().ok().or_else(|| Some(text.parse::<std::net::SocketAddr>().ok()?.ip()))?;
    Some(IpAddr::to_canonical(&address))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn only_what_trusted_proxies_wrote_is_believed() {
        let text = "[clients]\ntrusted_proxies = [\"10.0.0.0/8\", \"fd00::/8\"]\naddress_from = \"X-Forwarded-For\"";
        let config = Config::parse(text, "t").expect("a configuration");
        let asked = |from: &str, lines: &[&str]| {
            let address = format!("{from}:1").parse().expect("an address");
            let peer = Peer::at(address);
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append("x-forwarded-for", line.parse().expect("a value"));
            }
            client(&config.clients, &peer, &headers).map(|address| address.to_string())
        };
        for (from, lines, found) in [
            ("10.0.0.1", &["192.0.2.7"][..], "192.0.2.7"),
            ("10.0.0.1", &["1.2.3.4, 192.0.2.7"], "192.0.2.7"),
            ("10.0.0.1", &["1.2.3.4", "192.0.2.7, 10.9.9.9"], "192.0.2.7"),
            ("10.0.0.1", &["junk, 192.0.2.7"], "192.0.2.7"),
            ("10.0.0.1", &["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
            ("10.0.0.1", &["192.0.2.7:4711"], "192.0.2.7"),
            ("10.0.0.1", &["[2001:db8::1]:4711, fd00::1"], "2001:db8::1"),
            ("10.0.0.1", &["::ffff:192.0.2.7"], "192.0.2.7"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &[" , "], "10.0.0.1"),
            ("192.0.2.9", &["10.1.1.1"], "192.0.2.9"),
            ("[fd00::2]", &["2001:db8::5"], "2001:db8::5"),
            ("[::ffff:10.0.0.1]", &["192.0.2.7"], "192.0.2.7"),
        ] {
            assert_eq!(asked(from, lines).as_deref(), Ok(found), "{from} {lines:?}");
        }
        for junk in ["unknown", "192.0.2.7 10.0.0.1", "for=192.0.2.7", "1.2.3.4, é"] {
            assert!(asked("10.0.0.1", &[junk]).is_err(), "{junk}");
        }
    }
}
