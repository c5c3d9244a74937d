//! A name server that says what it is told. Source: RFC 1035, section 4.

use std::collections::HashMap;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use crate::HANG;

/// What is said of a name.
#[derive(Clone, Debug)]
pub enum Says {
    /// These addresses, which hold no time at all.
    Is(Vec<Ipv4Addr>),
    /// That there is no such name.
    Nowhere,
    /// Nothing.
    Silence,
}

/// Serves until the process ends. Names that it was not told of are nowhere.
#[derive(Debug, Default)]
pub struct Dns {
    inner: Arc<(Mutex<State>, Condvar)>,
}

#[derive(Debug, Default)]
struct State {
    names: HashMap<String, Says>,
    asked: Vec<String>,
}

impl Dns {
    /// Starts one where resolvers look for it.
    pub fn start() -> Self {
        let dns = Self::default();
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 53)).unwrap();
        let inner = Arc::clone(&dns.inner);
        thread::spawn(move || {
            let mut query = [0; 512];
            while let Ok((read, peer)) = socket.recv_from(&mut query) {
                if let Some(reply) = reply(&query[..read], &inner) {
                    let _ = socket.send_to(&reply, peer);
                }
            }
        });
        dns
    }

    /// What is said of a name from now on.
    pub fn say(&self, name: &str, says: Says) {
        self.inner.0.lock().unwrap_or_else(PoisonError::into_inner).names.insert(name.to_owned(), says);
    }

    /// How often a name was asked for, by whatever type.
    pub fn count(&self, name: &str) -> usize {
        let state = self.inner.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.asked.iter().filter(|asked| *asked == name).count()
    }

    /// Waits until a name was asked for.
    pub fn wait_asked(&self, name: &str) {
        let state = self.inner.0.lock().unwrap_or_else(PoisonError::into_inner);
        let unasked = |state: &mut State| !state.asked.iter().any(|asked| asked == name);
        let waited = self.inner.1.wait_timeout_while(state, HANG, unasked).unwrap_or_else(PoisonError::into_inner);
        assert!(!waited.1.timed_out(), "nobody asked for {name}");
    }
}

fn reply(query: &[u8], inner: &(Mutex<State>, Condvar)) -> Option<Vec<u8>> {
    let mut labels = Vec::new();
    let mut at = 12;
    while let Some(&length @ 1..) = query.get(at) {
        let label = query.get(at + 1..at + 1 + usize::from(length))?;
        labels.push(String::from_utf8_lossy(label).to_ascii_lowercase());
        at += 1 + usize::from(length);
    }
    let end = at + 5;
    let kind = u16::from_be_bytes(query.get(at + 1..at + 3)?.try_into().ok()?);
    let name = labels.join(".");
    let mut state = inner.0.lock().unwrap_or_else(PoisonError::into_inner);
    let says = state.names.get(&name).cloned().unwrap_or(Says::Nowhere);
    state.asked.push(name);
    inner.1.notify_all();
    drop(state);
    let (code, addresses) = match says {
        Says::Silence => return None,
        Says::Nowhere => (3, Vec::new()),
        // Type 1 is A; of any other there is none.
        Says::Is(addresses) => (0, if kind == 1 { addresses } else { Vec::new() }),
    };
    let mut reply = query.get(..end)?.to_vec();
    reply[2] = 0x85;
    reply[3] = 0x80 | code;
    reply[4..12].copy_from_slice(&[0, 1, 0, u8::try_from(addresses.len()).ok()?, 0, 0, 0, 0]);
    for address in addresses {
        reply.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        reply.extend_from_slice(&address.octets());
    }
    Some(reply)
}
