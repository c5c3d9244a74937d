//! How often logins may fail: for each address, and for each user, in a table that never grows past its bound.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// In which time failures are counted.
const WINDOW: Duration = Duration::from_mins(1);
/// Failures of one address.
const OF_ADDRESS: u32 = 10;
/// Failures of one user, from all addresses: more, since anybody can fail in the name of another.
const OF_USER: u32 = 30;
/// Addresses, and users, that are remembered.
const KEPT_MAX: usize = 4096;

/// The failures of a while.
#[derive(Default)]
pub struct Limit {
    addresses: Mutex<Table<IpAddr>>,
    users: Mutex<Table<String>>,
}

struct Table<K>(HashMap<K, (Instant, u32)>);

impl<K> Default for Table<K> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl Limit {
    /// When a login may be tried again; none: now.
    pub fn wait(&self, address: IpAddr, user: &str, now: Instant) -> Option<Duration> {
        let (address, user) = (network(address), user.to_owned());
        let of_address = self.addresses.lock().unwrap_or_else(PoisonError::into_inner).wait(&address, OF_ADDRESS, now);
        let of_user = self.users.lock().unwrap_or_else(PoisonError::into_inner).wait(&user, OF_USER, now);
        of_address.max(of_user)
    }

    /// A login has failed.
    pub fn failed(&self, address: IpAddr, user: &str, now: Instant) {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner).count(network(address), now);
        self.users.lock().unwrap_or_else(PoisonError::into_inner).count(user.to_owned(), now);
    }
}

/// Who has one address of IPv6 has a whole network of them.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX))),
    }
}

impl<K: Hash + Eq + Clone> Table<K> {
    fn wait(&self, key: &K, most: u32, now: Instant) -> Option<Duration> {
        let (since, count) = self.0.get(key)?;
        let left = WINDOW.checked_sub(now.saturating_duration_since(*since)).filter(|left| !left.is_zero())?;
        (*count >= most).then_some(left)
    }

    fn count(&mut self, key: K, now: Instant) {
        let over = |since: &Instant| now.saturating_duration_since(*since) >= WINDOW;
        if self.0.len() >= KEPT_MAX && !self.0.contains_key(&key) {
            self.0.retain(|_, (since, _)| !over(since));
            // Still full: who began to fail first is forgotten first.
            let oldest = self.0.iter().min_by_key(|(_, (since, _))| *since).map(|(key, _)| key.clone());
            if let Some(oldest) = oldest.filter(|_| self.0.len() >= KEPT_MAX) {
                self.0.remove(&oldest);
            }
        }
        let (since, count) = self.0.entry(key).or_insert((now, 0));
        if over(since) {
            (*since, *count) = (now, 0);
        }
        *count = count.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_limited_by_address_and_by_user_and_forgotten() {
        let (limit, start) = (Limit::default(), Instant::now());
        let address = |at: u32| IpAddr::V4((0x0a00_0000 + at).into());
        for _ in 0..OF_ADDRESS {
            assert_eq!(limit.wait(address(0), "alice", start), None);
            limit.failed(address(0), "alice", start);
        }
        assert_eq!(limit.wait(address(0), "bob", start), Some(WINDOW), "the address");
        assert_eq!(limit.wait(address(1), "alice", start), None);
        for at in OF_ADDRESS..OF_USER {
            limit.failed(address(at), "alice", start);
        }
        let later = start + WINDOW / 2;
        assert_eq!(limit.wait(address(1), "alice", later), Some(WINDOW / 2), "the user");
        assert_eq!(limit.wait(address(1), "bob", later), None);
        assert_eq!(limit.wait(address(0), "alice", start + WINDOW), None, "it is over");
        limit.failed(address(0), "alice", start + WINDOW);
        assert_eq!(limit.wait(address(0), "alice", start + WINDOW), None, "it begins anew");
        let six = |text: &str| text.parse().expect("an address");
        for at in 0..OF_ADDRESS {
            limit.failed(six(&format!("2001:db8::{at}")), &at.to_string(), start);
        }
        assert!(limit.wait(six("2001:db8::ffff"), "x", start).is_some(), "one network");
        assert!(limit.wait(six("2001:db8:0:1::"), "x", start).is_none(), "another");
    }

    #[test]
    fn the_tables_are_bounded() {
        let (limit, start) = (Limit::default(), Instant::now());
        for at in 0..2 * u32::try_from(KEPT_MAX).expect("few") {
            limit.failed(IpAddr::V4(at.into()), &at.to_string(), start + Duration::from_millis(u64::from(at)));
        }
        let (addresses, users) =
            (limit.addresses.lock().expect("fine").0.len(), limit.users.lock().expect("fine").0.len());
        assert_eq!((addresses, users), (KEPT_MAX, KEPT_MAX));
    }
}
