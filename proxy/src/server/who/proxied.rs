//! The PROXY protocol: for whom a balancer connects, said in front of all that the connection brings.
//!
//! Source: The PROXY protocol, versions 1 and 2 (haproxy.org).

use std::io;
use std::net::SocketAddr;

use ppp::{v1, v2};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Longest header of version 1. Source: section 2.1. Units: bytes.
const V1_MAX: usize = 107;
/// What stands in a header of version 2 before its addresses. Units: bytes.
const V2_HEAD: usize = 16;
/// Longest rest of a header of version 2 that is read: addresses and what balancers add to them. Units: bytes.
const V2_REST_MAX: usize = 2048;
/// How a header of version 2 begins.
const V2_SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Reads the header, and not a byte more. None: the balancer connects for itself, such as to see whether we live.
///
/// # Errors
/// There is none, or it says nothing that can be used.
pub async fn read<R: AsyncRead + Unpin>(stream: &mut R) -> io::Result<Option<SocketAddr>> {
    let mut header = vec![0; V2_SIGNATURE.len()];
    stream.read_exact(&mut header).await?;
    if header == V2_SIGNATURE {
        header.resize(V2_HEAD, 0);
        stream.read_exact(&mut header[V2_SIGNATURE.len()..]).await?;
        let rest = usize::from(u16::from_be_bytes([header[14], header[15]]));
        if rest > V2_REST_MAX {
            return Err(wrong("its PROXY header is too long"));
        }
        header.resize(V2_HEAD + rest, 0);
        stream.read_exact(&mut header[V2_HEAD..]).await?;
    } else if header.starts_with(b"PROXY ") {
        while !header.ends_with(b"\r\n") {
            if header.len() >= V1_MAX {
                return Err(wrong("its PROXY header is too long"));
            }
            header.push(stream.read_u8().await?);
        }
    } else {
        return Err(wrong("it sends no PROXY header"));
    }
    parse(&header).ok_or_else(|| wrong("its PROXY header is none"))
}

fn wrong(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

/// Whom a whole header names; some none: nobody. None: it is no header.
pub fn parse(header: &[u8]) -> Option<Option<SocketAddr>> {
    if header.starts_with(V2_SIGNATURE) {
        let header = v2::Header::try_from(header).ok()?;
        return Some(match (header.command, header.addresses) {
            (v2::Command::Proxy, v2::Addresses::IPv4(named)) => Some((named.source_address, named.source_port).into()),
            (v2::Command::Proxy, v2::Addresses::IPv6(named)) => Some((named.source_address, named.source_port).into()),
            // The balancer itself, or what came over no network: it has no address.
            (v2::Command::Local, _) | (_, v2::Addresses::Unspecified | v2::Addresses::Unix(_)) => None,
        });
    }
    let header = v1::Header::try_from(header).ok()?;
    Some(match header.addresses {
        v1::Addresses::Unknown => None,
        v1::Addresses::Tcp4(named) => Some((named.source_address, named.source_port).into()),
        v1::Addresses::Tcp6(named) => Some((named.source_address, named.source_port).into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn said(bytes: &[u8]) -> Result<(Option<String>, usize), String> {
        let mut rest = bytes;
        let named = read(&mut rest).await.map_err(|err| err.to_string())?;
        Ok((named.map(|address| address.to_string()), rest.len()))
    }

    fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).expect("short").to_be_bytes();
        [V2_SIGNATURE, &[command, family], &length, rest].concat()
    }

    #[tokio::test]
    async fn both_versions_are_read_and_nothing_behind_them() {
        let four = [192, 0, 2, 1, 127, 0, 0, 1, 0x30, 0x39, 0, 80];
        let six = [&[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1][..], &[0; 16], &[0, 1, 0, 2]].concat();
        for (header, named) in [
            (b"PROXY TCP4 192.0.2.1 127.0.0.1 12345 80\r\n".to_vec(), Some("192.0.2.1:12345")),
            (b"PROXY TCP6 2001:db8::1 ::1 1 2\r\n".to_vec(), Some("[2001:db8::1]:1")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN ffff::1 ::1 1 2\r\n".to_vec(), None),
            (v2(0x21, 0x11, &four), Some("192.0.2.1:12345")),
            (v2(0x21, 0x21, &six), Some("[2001:db8::1]:1")),
            (v2(0x21, 0x11, &[&four[..], &[4, 0, 1, 9]].concat()), Some("192.0.2.1:12345")),
            (v2(0x20, 0x00, &[]), None),
            (v2(0x20, 0x11, &four), None),
        ] {
            let bytes = [&header[..], b"GET /"].concat();
            assert_eq!(said(&bytes).await, Ok((named.map(str::to_owned), 5)), "{header:?}");
        }
    }

    #[tokio::test]
    async fn what_is_no_header_is_refused() {
        for bad in [
            &b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n"[..],
            b"PROXY TCP4 192.0.2.1\r\n",
            b"PROXY TCP4 999.0.2.1 127.0.0.1 1 2\r\n",
            b"PROXY TCP4 192.0.2.1 127.0.0.1 1 99999\r\n",
            b"PROXY TCP4 2001:db8::1 ::1 1 2\r\n",
            b"PROXY SCTP 192.0.2.1 127.0.0.1 1 2\r\n",
            b"proxy TCP4 192.0.2.1 127.0.0.1 1 2\r\n",
            &[&b"PROXY "[..], &[b'x'; 200], b"\r\n"].concat(),
            &v2(0x31, 0x11, &[0; 12]),
            &v2(0x21, 0x11, &[0; 4]),
            &v2(0x21, 0x11, &[0; 4000]),
            b"PROXY TCP4 19",
            b"",
        ] {
            assert!(said(bad).await.is_err(), "{:?}", bad.escape_ascii().to_string());
        }
    }
}
