//! Tokens that say who was let in: sealed, so that only this proxy can make and read them, and nothing of them is kept.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};

/// For how long a token lets in. Registries' tokens hold as long.
pub const LIFE: Duration = Duration::from_mins(5);
/// For how long one lets a client ask for others, where it asks for such a one.
pub const REFRESH_LIFE: Duration = Duration::from_hours(30 * 24);
/// Where the key is kept, in the state folder.
const KEY_FILE: &str = "token-key";
const KEY_LEN: usize = 32;
/// Longest token that is looked at. Units: bytes.
const TOKEN_MAX: usize = 28 << 10;

/// What a token is for. It is sealed with it: one kind is never taken for the other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// Requests.
    Access,
    /// Further tokens.
    Refresh,
}

/// What a token says. It has no Debug: a password may be in it.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq)]
pub struct Claims {
    /// When it ends, in seconds since 1970.
    pub until: u64,
    /// Who it is; none: anybody.
    pub subject: Option<Subject>,
    /// The user and the password that the client sent, for registries that are asked with them.
    pub credentials: Option<(String, String)>,
}

/// Who was let in.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub enum Subject {
    /// A user with a password here.
    User {
        /// Its name.
        name: String,
        /// What the hash of its password was known by: with another password it is over.
        mark: String,
    },
    /// Who showed a certificate.
    Certificate {
        /// As the certificate has it.
        subject: String,
        /// Who vouched for it.
        issuer: String,
        /// As the certificate has them.
        groups: Vec<String>,
    },
}

/// Makes and reads tokens.
pub struct Tokens {
    state_dir: PathBuf,
    key: OnceLock<LessSafeKey>,
}

impl Tokens {
    /// `state_dir`: where the key is kept, so that tokens outlive the process. It is made when it is first needed.
    pub fn new(state_dir: PathBuf) -> Self {
        Self { state_dir, key: OnceLock::new() }
    }

    /// Seals what a token says.
    pub fn seal(&self, purpose: Purpose, claims: &Claims) -> String {
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).expect("the system gives random bytes");
        let mut sealed = serde_json::to_vec(claims).expect("strings always serialize");
        self.key()
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), purpose.aad(), &mut sealed)
            .expect("it is short enough");
        URL_SAFE_NO_PAD.encode([&nonce[..], &sealed].concat())
    }

    /// Reads a token; none where it is none of ours, for something else, or over.
    pub fn open(&self, purpose: Purpose, token: &str) -> Option<Claims> {
        if token.len() > TOKEN_MAX {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
        let (nonce, sealed) = bytes.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut sealed = sealed.to_vec();
        let opened = self.key().open_in_place(nonce, purpose.aad(), &mut sealed).ok()?;
        let claims: Claims = serde_json::from_slice(opened).ok()?;
        (claims.until > now()).then_some(claims)
    }

    fn key(&self) -> &LessSafeKey {
        self.key.get_or_init(|| {
            let file = self.state_dir.join(KEY_FILE);
            let bytes = read_key(&file).or_else(|_| make_key(&file)).unwrap_or_else(|err| {
                tracing::warn!(
                    file = %file.display(),
                    error = err.to_string(),
                    "the key of the tokens cannot be kept: clients ask for new ones after the next start"
                );
                random_key()
            });
            LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &bytes).expect("it has 32 bytes"))
        })
    }
}

impl Purpose {
    fn aad(self) -> Aad<&'static [u8]> {
        Aad::from(match self {
            Self::Access => b"tidegate access 1",
            Self::Refresh => b"tidegate refresh 1",
        })
    }
}

/// When something ends that begins now, in seconds since 1970.
pub fn ends_after(life: Duration) -> u64 {
    now() + life.as_secs()
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn random_key() -> [u8; KEY_LEN] {
    let mut key = [0; KEY_LEN];
    SystemRandom::new().fill(&mut key).expect("the system gives random bytes");
    key
}

fn read_key(file: &Path) -> io::Result<[u8; KEY_LEN]> {
    let bytes = fs::read(file)?;
    if fs::metadata(file)?.permissions().mode() & 0o077 != 0 {
        tracing::warn!(file = %file.display(), "others can read the key of the tokens, and make themselves any user: chmod 600, or remove it");
    }
    bytes.try_into().map_err(|_| io::ErrorKind::InvalidData.into())
}

fn make_key(file: &Path) -> io::Result<[u8; KEY_LEN]> {
    let key = random_key();
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    let part = file.with_extension("part");
    let _ = fs::remove_file(&part);
    let mut written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part)?;
    written.write_all(&key)?;
    written.sync_all()?;
    fs::rename(&part, file)?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(until: u64) -> Claims {
        let subject = Some(Subject::User { name: "alice".to_owned(), mark: "m".to_owned() });
        Claims { until, subject, credentials: Some(("alice".to_owned(), "hunter2".to_owned())) }
    }

    #[test]
    fn a_token_is_read_by_who_made_it_and_for_what_it_was_made() {
        let folder = tempfile::tempdir().expect("a folder");
        let dir = folder.path().join("state");
        let tokens = Tokens::new(dir.clone());
        let token = tokens.seal(Purpose::Access, &claims(ends_after(LIFE)));
        assert!(tokens.open(Purpose::Access, &token).is_some_and(|read| read == claims(read.until)));
        assert!(tokens.open(Purpose::Refresh, &token).is_none());
        assert!(!URL_SAFE_NO_PAD.decode(&token).expect("base64").windows(5).any(|part| part == b"alice"));
        assert_ne!(token, tokens.seal(Purpose::Access, &claims(ends_after(LIFE))));
        // The key outlives the process, and is its own.
        assert!(Tokens::new(dir.clone()).open(Purpose::Access, &token).is_some());
        assert_eq!(fs::metadata(dir.join(KEY_FILE)).expect("a file").permissions().mode() & 0o777, 0o600);
        assert!(Tokens::new(folder.path().join("other")).open(Purpose::Access, &token).is_none());
        // A key that is none is made anew.
        fs::write(dir.join(KEY_FILE), "short").expect("written");
        assert!(Tokens::new(dir).open(Purpose::Access, &token).is_none());
        // One that cannot be kept serves.
        let nowhere = Tokens::new(PathBuf::from("/proc/nowhere"));
        let token = nowhere.seal(Purpose::Access, &claims(ends_after(LIFE)));
        assert!(nowhere.open(Purpose::Access, &token).is_some());
    }

    #[test]
    fn a_token_that_is_over_or_changed_is_none() {
        let folder = tempfile::tempdir().expect("a folder");
        let tokens = Tokens::new(folder.path().to_owned());
        assert!(tokens.open(Purpose::Access, &tokens.seal(Purpose::Access, &claims(now()))).is_none());
        let token = tokens.seal(Purpose::Access, &claims(ends_after(LIFE)));
        for at in 0..token.len() {
            let mut changed = token.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).expect("ASCII");
            assert!(tokens.open(Purpose::Access, &changed).is_none(), "{at}");
            assert!(tokens.open(Purpose::Access, &token[..at]).is_none(), "{at}");
        }
        for junk in ["", "x", "AAAA", "é", &"A".repeat(TOKEN_MAX + 4)] {
            assert!(tokens.open(Purpose::Access, junk).is_none());
        }
    }
}
