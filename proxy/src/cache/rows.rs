//! The tables of the index, in `index.redb`: what is kept, in which order it was used, and how much it is.

use std::path::Path;

use redb::{
    Database, Durability, ReadOnlyDatabase, ReadTransaction, ReadableDatabase, ReadableTable, ReadableTableMetadata,
    TableDefinition, WriteTransaction,
};

use super::fingerprint::Fingerprint;
use crate::oci::Digest;

/// What the index may keep of its file in memory. Units: bytes.
const CACHE: usize = 4 << 20;

/// Size, place in the order of use, seconds since the epoch, and inode, mtime and ctime as last verified.
type Value = (u64, u64, u64, Option<(u64, i64, i64)>);

const BLOBS: TableDefinition<&[u8], Value> = TableDefinition::new("blobs");
const USED: TableDefinition<u64, &[u8]> = TableDefinition::new("used");
const NUMBERS: TableDefinition<&str, u64> = TableDefinition::new("numbers");
const CURSORS: TableDefinition<&str, &[u8]> = TableDefinition::new("cursors");

/// Name of the number that is 1 while no process has the index open.
const CLOSED: &str = "closed";
const BYTES: &str = "bytes";
const SEQUENCE: &str = "sequence";

/// What the index knows of one blob.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Row {
    /// Units: bytes.
    pub size: u64,
    /// Its place in the order of use: counts up with each use, whatever the clock says.
    pub used: u64,
    /// When that was, for people. Units: seconds since the epoch.
    pub used_at_secs: u64,
    /// The file as it was when its content was last known to be right; none: never.
    pub verified: Option<Fingerprint>,
}

/// What happened to a blob since the index was last written.
#[derive(Clone, Copy, Debug)]
pub enum Change {
    /// It was kept, or verified.
    Put(Row),
    /// It was read.
    Used {
        /// Its new place in the order of use.
        used: u64,
        /// Units: seconds since the epoch.
        at_secs: u64,
    },
    /// It is gone.
    Gone,
}

/// How much is kept.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Totals {
    /// All blobs. Units: bytes.
    pub bytes: u64,
    /// How many they are.
    pub blobs: u64,
}

/// Opens a file, or makes it. Gives what stands in it: totals, the next place in the order of use, and whether the
/// process before this one had closed it.
pub fn open(path: &Path) -> Result<(Database, Totals, u64, bool), redb::Error> {
    begin(redb::Builder::new().set_cache_size(CACHE).create(path)?)
}

/// An index that is nowhere but in memory: for a folder that takes no file.
pub fn open_in_memory() -> Result<(Database, Totals, u64, bool), redb::Error> {
    let backend = redb::backends::InMemoryBackend::new();
    begin(redb::Builder::new().set_cache_size(CACHE).create_with_backend(backend)?)
}

fn begin(database: Database) -> Result<(Database, Totals, u64, bool), redb::Error> {
    let write = write(&database, true)?;
    let (totals, sequence, closed) = {
        let (blobs, used) = (write.open_table(BLOBS)?, write.open_table(USED)?);
        write.open_table(CURSORS)?;
        let mut numbers = write.open_table(NUMBERS)?;
        let number = |table: &redb::Table<&str, u64>, key| -> Result<u64, redb::Error> {
            Ok(table.get(key)?.map_or(0, |number| number.value()))
        };
        let totals = Totals { bytes: number(&numbers, BYTES)?, blobs: blobs.len()? };
        let last = used.last()?.map_or(0, |(key, _)| key.value());
        let sequence = number(&numbers, SEQUENCE)?.max(last + 1);
        // A new file is no closed one: there may be blobs that it does not know.
        let closed = numbers.insert(CLOSED, 0)?.is_some_and(|closed| closed.value() == 1);
        (totals, sequence, closed)
    };
    write.commit()?;
    Ok((database, totals, sequence, closed))
}

/// Begins to write. A durable commit also makes that opening after a crash takes no walk through the file; one that
/// is not costs no waiting for the disk, and becomes durable with the next that is.
fn write(database: &Database, durable: bool) -> Result<WriteTransaction, redb::Error> {
    let mut write = database.begin_write()?;
    if durable {
        write.set_quick_repair(true);
    } else {
        write.set_durability(Durability::None)?;
    }
    Ok(write)
}

/// Writes changes, in one step. Gives the totals after them.
pub fn apply<'a>(
    database: &Database,
    changes: impl Iterator<Item = (&'a Digest, &'a Change)>,
    sequence: u64,
    durable: bool,
) -> Result<Totals, redb::Error> {
    let write = write(database, durable)?;
    let totals = {
        let mut blobs = write.open_table(BLOBS)?;
        let mut used = write.open_table(USED)?;
        let mut numbers = write.open_table(NUMBERS)?;
        let mut bytes = numbers.get(BYTES)?.map_or(0, |number| number.value());
        for (digest, change) in changes {
            let key = key(digest);
            let key = key.as_slice();
            let before = blobs.get(key)?.map(|value| value.value());
            if let Some(before) = before {
                used.remove(before.1)?;
            }
            let after = match (change, before) {
                (Change::Put(row), _) => {
                    let verified = row.verified.map(|file| (file.inode, file.mtime_ns, file.ctime_ns));
                    Some((row.size, row.used, row.used_at_secs, verified))
                }
                (Change::Used { used, at_secs }, Some(before)) => Some((before.0, *used, *at_secs, before.3)),
                (Change::Used { .. }, None) => continue,
                (Change::Gone, _) => None,
            };
            bytes = bytes.saturating_sub(before.map_or(0, |before| before.0));
            if let Some(after) = after {
                bytes += after.0;
                used.insert(after.1, key)?;
                blobs.insert(key, after)?;
            } else {
                blobs.remove(key)?;
            }
        }
        numbers.insert(BYTES, bytes)?;
        numbers.insert(SEQUENCE, sequence)?;
        Totals { bytes, blobs: blobs.len()? }
    };
    write.commit()?;
    Ok(totals)
}

/// Marks the index as closed: no blob came that it does not know.
pub fn close(database: &Database) -> Result<(), redb::Error> {
    let write = write(database, true)?;
    write.open_table(NUMBERS)?.insert(CLOSED, 1)?;
    write.commit()?;
    Ok(())
}

/// What is known of a blob.
pub fn get(database: &Database, digest: &Digest) -> Result<Option<Row>, redb::Error> {
    let table = database.begin_read()?.open_table(BLOBS)?;
    let value = table.get(key(digest).as_slice())?;
    Ok(value.map(|value| row(value.value())))
}

/// The blobs that were not used for the longest time, longest first, of those used after `after`.
pub fn oldest(database: &Database, after: Option<u64>, count: usize) -> Result<Vec<(Digest, Row)>, redb::Error> {
    let read = database.begin_read()?;
    let (blobs, used) = (read.open_table(BLOBS)?, read.open_table(USED)?);
    let mut found = Vec::with_capacity(count);
    for entry in used.range(after.map_or(0, |after| after + 1)..)?.take(count) {
        let (_, key) = entry?;
        if let (Some(digest), Some(value)) = (digest(key.value()), blobs.get(key.value())?) {
            found.push((digest, row(value.value())));
        }
    }
    Ok(found)
}

/// The blobs behind one, in the order of their digests.
pub fn after(database: &Database, cursor: &[u8], count: usize) -> Result<Vec<(Digest, Row)>, redb::Error> {
    use std::ops::Bound;
    let table = database.begin_read()?.open_table(BLOBS)?;
    let mut found = Vec::with_capacity(count);
    for entry in table.range::<&[u8]>((Bound::Excluded(cursor), Bound::Unbounded))?.take(count) {
        let (key, value) = entry?;
        if let Some(digest) = digest(key.value()) {
            found.push((digest, row(value.value())));
        }
    }
    Ok(found)
}

/// The numbers and cursors of others.
pub fn number(database: &Database, name: &str) -> Result<Option<u64>, redb::Error> {
    let table = database.begin_read()?.open_table(NUMBERS)?;
    Ok(table.get(name)?.map(|number| number.value()))
}

/// Where somebody who walks through the blobs has come to; empty at the beginning.
pub fn cursor(database: &Database, name: &str) -> Result<Vec<u8>, redb::Error> {
    let table = database.begin_read()?.open_table(CURSORS)?;
    Ok(table.get(name)?.map(|cursor| cursor.value().to_vec()).unwrap_or_default())
}

/// Keeps a cursor and a number; they become durable with the next changes.
pub fn keep(database: &Database, name: &str, number: u64, cursor: &[u8]) -> Result<(), redb::Error> {
    let write = write(database, false)?;
    write.open_table(NUMBERS)?.insert(name, number)?;
    write.open_table(CURSORS)?.insert(name, cursor)?;
    write.commit()?;
    Ok(())
}

/// When the blob was used that was not used for the longest time, and the one used last. Units: seconds since the
/// epoch.
pub fn span(database: &Database) -> Result<Option<(u64, u64)>, redb::Error> {
    span_of(&database.begin_read()?)
}

/// Totals and span of an index that no process has open; none where it cannot be told.
pub fn peek(path: &Path) -> Option<(Totals, Option<(u64, u64)>)> {
    let database: ReadOnlyDatabase = redb::Builder::new().set_cache_size(CACHE).open_read_only(path).ok()?;
    let read = database.begin_read().ok()?;
    let bytes = read.open_table(NUMBERS).ok()?.get(BYTES).ok()?.map_or(0, |number| number.value());
    let blobs = read.open_table(BLOBS).ok()?.len().ok()?;
    Some((Totals { bytes, blobs }, span_of(&read).ok()?))
}

fn span_of(read: &ReadTransaction) -> Result<Option<(u64, u64)>, redb::Error> {
    let (blobs, used) = (read.open_table(BLOBS)?, read.open_table(USED)?);
    let at = |entry: Option<(redb::AccessGuard<u64>, redb::AccessGuard<&[u8]>)>| -> Result<_, redb::Error> {
        let Some((_, key)) = entry else { return Ok(None) };
        Ok(blobs.get(key.value())?.map(|value| value.value().2))
    };
    Ok(at(used.first()?)?.zip(at(used.last()?)?))
}

fn row((size, used, used_at_secs, verified): Value) -> Row {
    let fingerprint = |(inode, mtime_ns, ctime_ns)| Fingerprint { inode, size, mtime_ns, ctime_ns };
    Row { size, used, used_at_secs, verified: verified.map(fingerprint) }
}

/// The algorithm's number and the hash.
pub fn key(digest: &Digest) -> Vec<u8> {
    let (algorithm, hash) = match digest {
        Digest::Sha256(hash) => (0, hash.as_slice()),
        Digest::Sha512(hash) => (1, hash.as_slice()),
    };
    [&[algorithm], hash].concat()
}

fn digest(key: &[u8]) -> Option<Digest> {
    match key.split_first()? {
        (0, hash) => Some(Digest::Sha256(hash.try_into().ok()?)),
        (1, hash) => Some(Digest::Sha512(hash.try_into().ok()?)),
        _ => None,
    }
}
