//! Files that a plain connection sends by itself: from the system's memory to the socket, without a copy of ours.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use rustix::io::ReadWriteFlags;
use rustix::net::{SendAncillaryBuffer, SendFlags};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

use crate::body::{Due, Outlet};

/// How much is read at a time of what is not in memory. Units: bytes.
const READ: usize = 128 << 10;

/// Connections that read at once: each takes a thread, and `READ`. A disk is no faster for more of them.
static READS: Semaphore = Semaphore::const_new(32);

/// How long what is in memory is believed to stay there.
const STAYS: Duration = Duration::from_secs(1);

/// What of a body goes from files to a socket.
pub(super) struct Files {
    outlet: Arc<Outlet>,
    due: Option<Due>,
    /// To before this byte of what is due, the system had it in memory at that time. Units: bytes.
    seen: Option<(u64, Instant)>,
    fetching: Option<AbortOnDropHandle<io::Result<()>>>,
}

impl Files {
    pub fn new(outlet: Arc<Outlet>) -> Self {
        Self { outlet, due: None, seen: None, fetching: None }
    }

    /// Whether the disk is waited for, and not the client.
    pub fn wait_for_disk(&self) -> bool {
        self.fetching.is_some()
    }

    /// Writes slices, and where they stand for bytes of a file, these.
    pub fn poll_write(
        &mut self,
        stream: &mut TcpStream,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.outlet.is_broken() {
            return Poll::Ready(Err(io::Error::other("what stands for a file was not sent as one")));
        }
        let of_file = |slice: &&IoSlice<'_>| Outlet::stands_for_file(slice);
        match slices.iter().position(|slice| of_file(&slice)) {
            None => {
                use tokio::io::AsyncWrite;
                Pin::new(stream).poll_write_vectored(cx, slices)
            }
            Some(0) => {
                let most = slices.iter().take_while(of_file).map(|slice| slice.len()).sum();
                self.poll_send(stream, cx, most)
            }
            // The head of an answer is no packet of its own.
            Some(before) => poll_socket(stream, cx, || {
                rustix::net::sendmsg(
                    &*stream,
                    &slices[..before],
                    &mut SendAncillaryBuffer::default(),
                    SendFlags::MORE | SendFlags::NOSIGNAL,
                )
            }),
        }
    }

    /// Sends at most so many bytes of the file that is due.
    fn poll_send(&mut self, stream: &TcpStream, cx: &mut Context<'_>, most: usize) -> Poll<io::Result<usize>> {
        let Self { outlet, due, seen, fetching } = self;
        if due.is_none() {
            (*due, *seen) = (outlet.next_due(), None);
        }
        let Some(part) = due else { return Poll::Ready(Err(io::Error::other("no file is due"))) };
        let end = part.end.min(part.at + most as u64);
        ready!(stream.poll_write_ready(cx))?;
        // A file that must be read first is read elsewhere: a disk must not hold up this thread, and with it others.
        let unsure = seen.is_none_or(|(to, at)| to < end || at.elapsed() > STAYS);
        if unsure && fetching.is_none() && !(is_in_memory(&part.file, part.at) && is_in_memory(&part.file, end - 1)) {
            let (file, at) = (part.file.clone(), part.at);
            *fetching = Some(AbortOnDropHandle::new(tokio::spawn(async move {
                let turn = READS.acquire().await.map_err(io::Error::other)?;
                tokio::task::spawn_blocking(move || {
                    // Until it is read, whether anybody waits for it or not.
                    let _turn = turn;
                    fetch(&file, at, end)
                })
                .await?
            })));
        }
        if let Some(running) = fetching {
            let done = ready!(Pin::new(running).poll(cx));
            *fetching = None;
            done.map_err(io::Error::other)??;
        }
        if unsure {
            *seen = Some((end, Instant::now()));
        }
        let sent = ready!(poll_sendfile(stream, cx, part, end))?;
        if sent == 0 {
            tracing::warn!("a cached file became shorter while it was sent");
            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        part.at += sent as u64;
        outlet.sent(sent);
        if part.at == part.end {
            *due = None;
        }
        Poll::Ready(Ok(sent))
    }
}

fn poll_socket(
    stream: &TcpStream,
    cx: &mut Context<'_>,
    mut write: impl FnMut() -> rustix::io::Result<usize>,
) -> Poll<io::Result<usize>> {
    loop {
        ready!(stream.poll_write_ready(cx))?;
        match stream.try_io(Interest::WRITABLE, || Ok(write()?)) {
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
            done => return Poll::Ready(done),
        }
    }
}

/// Sends bytes of a part up to `end`; none where the file has none.
fn poll_sendfile(stream: &TcpStream, cx: &mut Context<'_>, part: &Due, end: u64) -> Poll<io::Result<usize>> {
    let length = usize::try_from(end - part.at).expect("at most a slice");
    loop {
        ready!(stream.poll_write_ready(cx))?;
        let (mut at, mut sent) = (part.at, 0);
        let tried = stream.try_io(Interest::WRITABLE, || {
            sent = rustix::fs::sendfile(stream, &part.file, Some(&mut at), length)?;
            // A short write has filled the socket: it is waited for without being tried once more. A file that became
            // shorter does not fill it.
            let filled = || io::Result::Ok(rustix::fs::fstat(&part.file)?.st_size.cast_unsigned() >= end);
            if 0 < sent && sent < length && filled()? { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
        });
        match tried {
            Err(err) if err.kind() != io::ErrorKind::WouldBlock => return Poll::Ready(Err(err)),
            Err(_) if sent == 0 => {}
            _ => return Poll::Ready(Ok(sent)),
        }
    }
}

/// Whether a byte of a file can be had without its disk. One behind its end can: there is none.
fn is_in_memory(file: &File, at: u64) -> bool {
    let mut byte = [0];
    rustix::io::preadv2(file, &mut [IoSliceMut::new(&mut byte)], at, ReadWriteFlags::NOWAIT).is_ok()
}

/// Has the system read a part of a file.
fn fetch(file: &File, mut at: u64, end: u64) -> io::Result<()> {
    let mut buffer = vec![0; READ];
    while at < end {
        let length = usize::try_from(end - at).map_or(READ, |left| left.min(READ));
        match file.read_at(&mut buffer[..length], at)? {
            0 => break,
            read => at += read as u64,
        }
    }
    Ok(())
}
