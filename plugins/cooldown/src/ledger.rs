//! When each image was first seen: kept by the host, which takes 10,000 keys of a plugin.
//!
//! A new image has a key of its own, so that the first of several instances wins: digest -> seconds. Once it is older
//! than every rule asks for, it is written onto a shelf with many others, to the day, and its key ends a week later:
//! so images of years have room. Shelves are read and written in two steps, and of two instances at once one may lose
//! what it wrote; but until the key ends, each pull sees to it that the shelf has it. What is lost all the same is
//! taken for new and held, which is the safe side.

use std::fmt::Write as _;

use tidegate_sdk::state::{self, Error};

/// Shelves: with all of them in use some 8,000 keys are left for new images. A power of two.
const SHELVES: u64 = 2048;
/// How long the key of an image stays once it is on a shelf. Units: seconds.
const MOVED_SECS: u32 = 7 * 86_400;
/// Digits of the digest on a shelf: 96 bits, so that nobody makes an image that is taken for one that is there.
const MARK_LEN: usize = 24;
/// A mark and its day, in hexadecimal digits.
const ENTRY_LEN: usize = MARK_LEN + 4;
/// What the host takes as a value. Units: bytes.
const SHELF_MAX: usize = 4096;
const DAY_MS: u64 = 86_400_000;

/// When a digest was first seen; none: never. Units: milliseconds.
///
/// `old_ms`: what was seen before this is moved to a shelf.
pub fn first_seen(digest: &str, old_ms: u64) -> Result<Option<u64>, Error> {
    let Some(secs) = state::get(&key(digest))? else {
        return Ok(Place::of(digest).find(&shelf(digest)?).map(|day| day * DAY_MS));
    };
    let seen_ms = secs.parse::<u64>().unwrap_or(0) * 1000;
    if seen_ms < old_ms {
        put_on_shelf(digest, &secs, seen_ms / DAY_MS)?;
    }
    Ok(Some(seen_ms))
}

/// Takes a digest down as seen now, unless it is there. Gives when it was first seen. Units: milliseconds.
pub fn take_down(digest: &str, now_ms: u64) -> Result<u64, Error> {
    let seen = state::set_once(&key(digest), &(now_ms / 1000).to_string(), None)?;
    Ok(seen.parse::<u64>().map_or(now_ms, |secs| secs * 1000))
}

/// `sha256:` and `sha512:` tell their digits apart by their number.
fn key(digest: &str) -> String {
    format!("seen {}", digits(digest))
}

fn digits(digest: &str) -> &str {
    digest.split_once(':').map_or(digest, |(_, digits)| digits)
}

/// Where a digest is on the shelves.
struct Place {
    shelf: u64,
    mark: String,
}

impl Place {
    fn of(digest: &str) -> Self {
        let digits = digits(digest);
        let number = digits.get(..4).and_then(|digits| u64::from_str_radix(digits, 16).ok()).unwrap_or(0);
        let mark = digits.get(4..4 + MARK_LEN).unwrap_or_default().to_owned();
        Self { shelf: number % SHELVES, mark }
    }

    /// The day when it was first seen, since 1970.
    fn find(&self, entries: &str) -> Option<u64> {
        let entry = entries.as_bytes().chunks_exact(ENTRY_LEN).find(|entry| entry.starts_with(self.mark.as_bytes()))?;
        u64::from_str_radix(std::str::from_utf8(&entry[MARK_LEN..]).ok()?, 16).ok()
    }

    fn key(&self) -> String {
        format!("shelf {}", self.shelf)
    }
}

fn shelf(digest: &str) -> Result<String, Error> {
    Ok(state::get(&Place::of(digest).key())?.unwrap_or_default())
}

/// Where there is no room, its key stays for good.
fn put_on_shelf(digest: &str, secs: &str, day: u64) -> Result<(), Error> {
    let (place, mut shelf) = (Place::of(digest), shelf(digest)?);
    if place.mark.len() < MARK_LEN || place.find(&shelf).is_some() || shelf.len() + ENTRY_LEN > SHELF_MAX {
        return Ok(());
    }
    let _ = write!(shelf, "{}{day:04x}", place.mark);
    match state::set(&place.key(), &shelf, None) {
        Ok(()) => state::set(&key(digest), secs, Some(MOVED_SECS)),
        Err(Error::TooManyKeys) => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_sdk::key::sha256_hex;
    use tidegate_sdk::testing::host;

    fn digest(number: u32) -> String {
        format!("sha256:{}", sha256_hex(&number.to_le_bytes()))
    }

    fn now_ms() -> u64 {
        host(|host| host.now_ms)
    }

    #[test]
    fn the_first_time_holds() {
        let first = now_ms();
        assert_eq!(first_seen(&digest(1), 0), Ok(None));
        assert_eq!(take_down(&digest(1), first), Ok(first));
        assert_eq!(take_down(&digest(1), first + 5_000), Ok(first));
        assert_eq!(first_seen(&digest(1), 0), Ok(Some(first)));
        assert_eq!(first_seen(&digest(2), 0), Ok(None));
    }

    #[test]
    fn what_is_old_is_known_to_the_day_and_leaves_room() {
        let first = now_ms();
        let day = first / DAY_MS * DAY_MS;
        // More than the host has keys, in batches of which each is old before the next one.
        for batch in 0..6 {
            let numbers = batch * 2500..(batch + 1) * 2500;
            for number in numbers.clone() {
                take_down(&digest(number), now_ms()).expect("room");
            }
            host(|host| host.now_ms += 10 * DAY_MS);
            let old_ms = now_ms() - DAY_MS;
            for number in numbers {
                first_seen(&digest(number), old_ms).expect("a look");
            }
            host(|host| host.now_ms += 8 * DAY_MS);
        }
        assert_eq!(first_seen(&digest(0), 0), Ok(Some(day)));
        assert_eq!(first_seen(&digest(14_999), 0), Ok(Some(day + 5 * 18 * DAY_MS)));
        assert_eq!(first_seen(&digest(15_000), 0), Ok(None));
    }

    #[test]
    fn what_another_instance_overwrote_is_written_again() {
        let first = now_ms();
        take_down(&digest(1), first).expect("room");
        assert_eq!(first_seen(&digest(1), first + 1000), Ok(Some(first)));
        // One that had read the shelf before writes it after.
        state::set(&Place::of(&digest(1)).key(), "", None).expect("room");
        assert_eq!(first_seen(&digest(1), first + 1000), Ok(Some(first)));
        host(|host| host.now_ms += 8 * DAY_MS);
        assert_eq!(first_seen(&digest(1), first + 1000), Ok(Some(first / DAY_MS * DAY_MS)));
    }

    #[test]
    fn a_full_shelf_leaves_the_key() {
        let first = now_ms();
        take_down(&digest(1), first).expect("room");
        let other = "0".repeat(ENTRY_LEN * (SHELF_MAX / ENTRY_LEN));
        state::set(&Place::of(&digest(1)).key(), &other, None).expect("room");
        assert_eq!(first_seen(&digest(1), first + 1000), Ok(Some(first)));
        host(|host| host.now_ms += 30 * DAY_MS);
        assert_eq!(first_seen(&digest(1), first + 1000), Ok(Some(first)));
    }
}
