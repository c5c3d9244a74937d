//! The name of an upload that a client gets: the registry's address for it, sealed. It can be neither read nor made by
//! anybody else, belongs to one repository, and takes no memory here; so it outlives this process.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::OnceCell;
use url::Url;

use crate::oci::{Place, Registry, Repository, Session};

/// The key's file in the state folder.
const FILE: &str = "push.key";
/// Units: bytes.
const KEY_LEN: usize = 32;

/// Seals and opens names of uploads.
pub struct Seals {
    file: PathBuf,
    key: OnceCell<LessSafeKey>,
}

/// Where an upload is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Upload {
    /// Where it goes to.
    pub place: Place,
    /// As the registry named it last.
    pub url: Url,
}

impl Seals {
    /// Seals whose key is kept in a folder. It is read, or made, when it is needed.
    pub fn new(state_dir: &Path) -> Self {
        Self { file: state_dir.join(FILE), key: OnceCell::new() }
    }

    /// Seals an upload for the repository that its client named.
    pub(super) async fn seal(&self, named: &Place, upload: &Upload) -> Session {
        let Upload { place: Place { registry, repository }, url } = upload;
        let mut text = format!("{registry}\n{repository}\n{url}").into_bytes();
        let nonce = random::<NONCE_LEN>();
        let about = Aad::from(named.to_string());
        let key = self.key().await;
        key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), about, &mut text)
            .expect("an address is not too long for it");
        let sealed: Vec<u8> = nonce.into_iter().chain(text).collect();
        Session(BASE64_URL_SAFE_NO_PAD.encode(sealed))
    }

    /// Opens what was sealed for a repository; none: it was not, or not here.
    pub(super) async fn open(&self, named: &Place, session: &Session) -> Option<Upload> {
        let mut sealed = BASE64_URL_SAFE_NO_PAD.decode(&session.0).ok()?;
        let (nonce, text) = sealed.split_at_mut_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let text = self.key().await.open_in_place(nonce, Aad::from(named.to_string()), text).ok()?;
        let mut lines = std::str::from_utf8(text).ok()?.splitn(3, '\n');
        let registry = Registry::parse(lines.next()?)?;
        let repository = Repository::parse(lines.next()?)?;
        Some(Upload { place: Place { registry, repository }, url: Url::parse(lines.next()?).ok()? })
    }

    async fn key(&self) -> &LessSafeKey {
        let file = self.file.clone();
        self.key
            .get_or_init(|| async move {
                let kept = tokio::task::spawn_blocking(move || keep(&file).map_err(|err| (file, err))).await;
                let bytes = match kept {
                    Ok(Ok(bytes)) => bytes,
                    Ok(Err((file, err))) => {
                        tracing::warn!(file = %file.display(), error = err.to_string(), "the key of uploads cannot be kept: those under way will not outlive this process");
                        random()
                    }
                    Err(_) => random(),
                };
                LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &bytes).expect("a key of this length"))
            })
            .await
    }
}

fn random<const LEN: usize>() -> [u8; LEN] {
    let mut bytes = [0; LEN];
    SystemRandom::new().fill(&mut bytes).expect("the system has random numbers");
    bytes
}

/// Reads the key, or makes one. One that others may read is none.
fn keep(file: &Path) -> io::Result<[u8; KEY_LEN]> {
    if let Some(key) = read(file)? {
        return Ok(key);
    }
    let (key, folder) = (random::<KEY_LEN>(), file.parent().unwrap_or(Path::new("/")));
    fs::create_dir_all(folder)?;
    let staged = folder.join(format!(".{FILE}.{}", std::process::id()));
    let _ = fs::remove_file(&staged);
    let written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&staged);
    let put = written.and_then(|mut staging| staging.write_all(&key)).and_then(|()| fs::rename(&staged, file));
    if put.is_err() {
        let _ = fs::remove_file(&staged);
    }
    put.map(|()| key)
}

fn read(file: &Path) -> io::Result<Option<[u8; KEY_LEN]>> {
    let mut open = match OpenOptions::new().read(true).open(file) {
        Ok(open) => open,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(err) => return Err(err),
    };
    let about = open.metadata()?;
    let ours = about.is_file() && about.mode().trailing_zeros() >= 6 && about.len() == KEY_LEN as u64;
    let mut key = [0; KEY_LEN];
    Ok(if ours { open.read_exact(&mut key).map(|()| Some(key))? } else { None })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(name: &str) -> Place {
        let (registry, repository) = name.split_once('/').expect("a name");
        let registry = Registry::parse(registry).expect("a registry");
        Place { registry, repository: Repository::parse(repository).expect("a repository") }
    }

    #[tokio::test]
    async fn i9_a_sealed_upload_opens_for_its_repository_alone_and_outlives_the_process() {
        let folder = tempfile::tempdir().expect("a folder");
        let seals = Seals::new(folder.path());
        let url = Url::parse("https://r.lan/v2/a/blobs/uploads/1?_state=x").expect("an address");
        let upload = Upload { place: place("r.lan/a"), url };
        let sealed = seals.seal(&place("r.lan/a"), &upload).await;
        assert!(!sealed.0.contains("r.lan") && sealed.0.len() < 200, "{}", sealed.0);
        assert_ne!(sealed, seals.seal(&place("r.lan/a"), &upload).await);
        let again = Seals::new(folder.path());
        assert_eq!(again.open(&place("r.lan/a"), &sealed).await, Some(upload.clone()));
        assert_eq!(again.open(&place("r.lan/b"), &sealed).await, None);
        let mode = fs::metadata(folder.path().join(FILE)).expect("a file").mode();
        assert_eq!(mode & 0o777, 0o600);
        for at in 0..sealed.0.len() {
            let mut bytes = sealed.0.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let changed = Session(String::from_utf8(bytes).expect("text"));
            assert_eq!(again.open(&place("r.lan/a"), &changed).await, None, "{at}");
        }
        for junk in ["", "x", "AAAA", "....", "%%%", &"A".repeat(8000)] {
            assert_eq!(again.open(&place("r.lan/a"), &Session(junk.to_owned())).await, None, "{junk}");
        }
        let elsewhere = tempfile::tempdir().expect("a folder");
        assert_eq!(Seals::new(elsewhere.path()).open(&place("r.lan/a"), &sealed).await, None);
    }

    #[tokio::test]
    async fn a_key_that_others_may_read_is_made_anew_and_one_that_cannot_be_kept_is_in_memory() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join(FILE);
        fs::write(&file, [7; KEY_LEN]).expect("a file");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("permissions");
        assert_ne!(keep(&file).expect("a key"), [7; KEY_LEN]);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("permissions");
        assert_eq!(keep(&file).expect("a key"), keep(&file).expect("the same"));
        let seals = Seals::new(Path::new("/dev/null/none"));
        let upload = Upload { place: place("r.lan/a"), url: Url::parse("http://r.lan/").expect("an address") };
        let sealed = seals.seal(&upload.place, &upload).await;
        assert_eq!(seals.open(&upload.place, &sealed).await, Some(upload));
    }
}
