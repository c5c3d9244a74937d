//! The file of the record: only whole lines are appended, and one that was moved away is opened anew.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::line::Line;

/// How often it is said that the file takes nothing.
const REPORT: Duration = Duration::from_mins(1);
/// How a line of ours begins.
const BEGINNING: &[u8] = br#"{"time":"#;
/// What is read at a time in search of the last whole line. Units: bytes.
const STEP: u64 = 64 << 10;

/// Where lines go.
pub(super) struct Out {
    /// None: standard output.
    path: Option<PathBuf>,
    file: Option<File>,
    reported: Option<Instant>,
}

impl Out {
    /// Opens a file to append to; `-` is standard output.
    pub fn open(path: PathBuf) -> io::Result<Self> {
        if path == Path::new("-") {
            return Ok(Self { path: None, file: None, reported: None });
        }
        let file = open(&path)?;
        Ok(Self { path: Some(path), file: Some(file), reported: None })
    }

    /// Appends lines; whether they are all there.
    pub fn write(&mut self, lines: &[Line]) -> bool {
        let mut bytes = Vec::with_capacity(lines.len() * 1024);
        for line in lines {
            serde_json::to_writer(&mut bytes, line).expect("texts and numbers serialize into memory");
            bytes.push(b'\n');
        }
        match self.append(&bytes) {
            Ok(()) => true,
            Err(err) => {
                // What was written of a line is taken away when it is opened again.
                self.file = None;
                if self.reported.is_none_or(|reported| reported.elapsed() > REPORT) {
                    self.reported = Some(Instant::now());
                    let file =
                        self.path.as_ref().map_or("standard output".to_owned(), |path| path.display().to_string());
                    tracing::warn!(file, error = err.to_string(), "decisions cannot be written: those of now are lost");
                }
                false
            }
        }
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(path) = &self.path else {
            let mut out = io::stdout().lock();
            return out.write_all(bytes).and_then(|()| out.flush());
        };
        let file = match self.file.take() {
            Some(file) if is_at(&file, path) => file,
            _ => open(path)?,
        };
        self.file.insert(file).write_all(bytes)
    }
}

/// Whether a path still leads to an open file: whoever rotates logs moves it away.
fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(open), Ok(there)) = (file.metadata(), fs::metadata(path)) else { return false };
    (open.dev(), open.ino()) == (there.dev(), there.ino())
}

fn open(path: &Path) -> io::Result<File> {
    // A FIFO without a reader would hold up who opens it.
    if fs::metadata(path).is_ok_and(|about| !about.is_file()) {
        return Err(io::Error::other("it is no regular file"));
    }
    // It tells who pulls what: not for every user of the machine.
    let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o640).open(path)?;
    let whole = end_of_last_line(&mut file)?;
    let mut rest = Vec::new();
    file.seek(SeekFrom::Start(whole))?;
    Read::by_ref(&mut file).take(BEGINNING.len() as u64).read_to_end(&mut rest)?;
    if rest.starts_with(BEGINNING) {
        // What a crash or a full disk has left of a line.
        file.set_len(whole)?;
    } else if !rest.is_empty() {
        // Nothing of ours: it stays.
        file.write_all(b"\n")?;
    }
    Ok(file)
}

/// Where the last whole line ends.
fn end_of_last_line(file: &mut File) -> io::Result<u64> {
    let mut end = file.metadata()?.len();
    while end > 0 {
        let from = end.saturating_sub(STEP);
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(from))?;
        Read::by_ref(file).take(end - from).read_to_end(&mut bytes)?;
        if let Some(at) = bytes.iter().rposition(|byte| *byte == b'\n') {
            return Ok(from + at as u64 + 1);
        }
        end = from;
    }
    Ok(0)
}
