//! Users and their groups, from the files that `htpasswd -B` and Apache's `AuthGroupFile` have: read whole, or refused.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};

use bcrypt::HashParts;
use toml::Spanned;

use crate::config::source::{ConfigError, Source};
use crate::config::watch::Read;

/// Largest file of users or of groups: a hundred thousand users. Units: bytes.
const FILE_MAX: u64 = 8 << 20;
/// Longest name of a user or of a group. Units: bytes.
const NAME_MAX: usize = 255;
/// Most that a hash may cost: each step doubles the time, and 14 takes a second.
const COST_MAX: u32 = 14;

/// Who has a password, and who belongs together.
#[derive(Debug, Default)]
pub struct Users(HashMap<String, User>);

/// One user.
pub struct User {
    /// The hash of the password, as it stands in the file.
    pub hash: String,
    /// What the user belongs to, in the order of their names.
    pub groups: Vec<String>,
}

impl fmt::Debug for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("User").field("groups", &self.groups).finish_non_exhaustive()
    }
}

/// Why a file is none of users or groups: line and reason.
type Wrong = (usize, String);

impl Users {
    /// A user by its name.
    pub fn get(&self, name: &str) -> Option<&User> {
        self.0.get(name)
    }

    /// The hash of one of them, to take as long for who is none.
    pub fn any_hash(&self) -> Option<String> {
        self.0.values().next().map(|user| user.hash.clone())
    }

    /// Reads the text of both files. `file`: where the first stands, for the command that makes a bad line right.
    ///
    /// # Errors
    /// Line and reason; the flag tells whether the groups are wrong.
    pub fn parse(text: &str, groups: Option<&str>, file: &Path) -> Result<Self, (bool, Wrong)> {
        let mut users = parse_users(text, file).map_err(|wrong| (false, wrong))?;
        for (group, members) in parse_groups(groups.unwrap_or_default()).map_err(|wrong| (true, wrong))? {
            for member in members {
                // One that has no password is none of ours: a group may be of more than this proxy.
                if let Some(user) = users.get_mut(&member)
                    && user.groups.last() != Some(&group)
                {
                    user.groups.push(group.clone());
                }
            }
        }
        Ok(Self(users))
    }
}

fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let meant = |(_, line): &(usize, &str)| !line.is_empty() && !line.starts_with('#');
    text.lines().enumerate().map(|(at, line)| (at + 1, line.trim_end())).filter(meant)
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= NAME_MAX && !name.contains(|sign: char| sign.is_control() || sign == ':')
}

fn parse_users(text: &str, file: &Path) -> Result<HashMap<String, User>, Wrong> {
    let mut users = HashMap::new();
    for (at, line) in lines(text) {
        // What stands behind a colon may be a password that somebody wrote in plain: it is never quoted.
        let Some((name, hash)) = line.split_once(':').filter(|(name, _)| is_name(name)) else {
            return Err((at, "is no line of the form USER:HASH; make the file with `htpasswd -B`".to_owned()));
        };
        let mend = || format!("htpasswd -B {} '{}'", file.display(), name.escape_debug());
        let is_bcrypt = ["$2a$", "$2b$", "$2y$"].iter().any(|kind| hash.starts_with(kind));
        let Some(parts) = hash.parse::<HashParts>().ok().filter(|_| is_bcrypt) else {
            let message =
                format!("the password of `{}` is not hashed by bcrypt; set it anew: {}", name.escape_debug(), mend());
            return Err((at, message));
        };
        if !(4..=COST_MAX).contains(&parts.get_cost()) {
            let message = format!(
                "the hash of `{}` costs {}, which is not from 4 to {COST_MAX}: each login would take too long; set it anew: {}",
                name.escape_debug(),
                parts.get_cost(),
                mend().replace("-B", "-B -C 10")
            );
            return Err((at, message));
        }
        let user = User { hash: hash.to_owned(), groups: Vec::new() };
        if users.insert(name.to_owned(), user).is_some() {
            return Err((at, format!("`{}` stands here a second time; remove one of both lines", name.escape_debug())));
        }
    }
    if users.is_empty() {
        return Err((1, format!("has no user in it; add one: htpasswd -B {} USER", file.display())));
    }
    Ok(users)
}

fn parse_groups(text: &str) -> Result<BTreeMap<String, Vec<String>>, Wrong> {
    let mut groups: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (at, line) in lines(text) {
        let parsed = line.split_once(':').map(|(name, members)| (name.trim(), members));
        let Some((name, members)) = parsed.filter(|(name, _)| is_name(name) && !name.contains(' ')) else {
            return Err((at, "is no line of the form GROUP: USER USER".to_owned()));
        };
        groups.entry(name.to_owned()).or_default().extend(members.split_whitespace().map(str::to_owned));
    }
    Ok(groups)
}

impl Source<'_> {
    pub fn users(
        &self,
        htpasswd: Spanned<PathBuf>,
        groups: Option<Spanned<PathBuf>>,
    ) -> Result<(Users, Vec<Read>), ConfigError> {
        let mut files = Vec::new();
        let mut read = |typed: Spanned<PathBuf>, key: &'static str| {
            let span = typed.span();
            let file = self.absolute(typed, key)?;
            files.push(Read::before(file.clone()));
            let text =
                read_text(&file).map_err(|reason| self.error(&span, &format!("{key}: {} {reason}", file.display())))?;
            Ok((span, file, text))
        };
        let users = read(htpasswd, "clients.htpasswd")?;
        let groups = groups.map(|groups| read(groups, "clients.groups")).transpose()?;
        let parsed = Users::parse(&users.2, groups.as_ref().map(|(_, _, text)| text.as_str()), &users.1);
        match parsed {
            Ok(parsed) => Ok((parsed, files)),
            Err((of_groups, (line, reason))) => {
                let (key, (span, file, _)) = match &groups {
                    Some(groups) if of_groups => ("clients.groups", groups),
                    _ => ("clients.htpasswd", &users),
                };
                Err(self.error(span, &format!("{key}: {}:{line}: {reason}", file.display())))
            }
        }
    }
}

fn read_text(file: &Path) -> Result<String, String> {
    let about = std::fs::metadata(file).map_err(|err| format!("cannot be read: {err}"))?;
    if !about.is_file() {
        return Err("is not a regular file".to_owned());
    }
    if about.len() > FILE_MAX {
        return Err(format!("is larger than {FILE_MAX} bytes"));
    }
    let bytes = std::fs::read(file).map_err(|err| format!("cannot be read: {err}"))?;
    String::from_utf8(bytes).map_err(|_| "is not UTF-8 text".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "$2y$04$abcdefghijklmnopqrstuuXcGIkOCPRWzBWkEP9Ta1bAJXvVBCXhO";

    fn parse(text: &str, groups: &str) -> Result<Users, (bool, Wrong)> {
        Users::parse(text, Some(groups), Path::new("/etc/users"))
    }

    #[test]
    fn users_and_groups_are_read() {
        let text = format!("# people\n\nalice:{HASH}\nbob:{}\r\n", HASH.replace("$2y$", "$2b$"));
        let users = parse(&text, "# who\nops: alice carol\ndev:alice  bob\nops: bob bob\n").expect("users");
        assert_eq!(users.get("alice").expect("alice").groups, ["dev", "ops"]);
        assert_eq!(users.get("bob").expect("bob").groups, ["dev", "ops"]);
        assert!(users.get("bob").expect("bob").hash.ends_with("XhO"), "without the end of its line");
        assert!(users.get("carol").is_none() && users.get("").is_none());
        assert!(!format!("{users:?}").contains("$2"), "no hash is shown");
    }

    #[test]
    fn a_line_that_is_none_is_refused_with_its_number_and_the_command_that_mends_it() {
        let mends = "set it anew: htpasswd -B /etc/users 'bob'";
        for (line, word) in [
            ("bob:$apr1$k9zzzzzz$wkEfZbFjKyyhdIRWoTzSh1", mends),
            ("bob:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=", mends),
            ("bob:hunter2", mends),
            ("bob:$2y$10$short", mends),
            (&format!("bob:{}", HASH.replace("$2y$", "$2x$")), mends),
            (&format!("bob:{}", HASH.replace("$04$", "$15$")), "htpasswd -B -C 10 /etc/users 'bob'"),
            (&format!("alice:{HASH}"), "a second time"),
            ("hunter2", "USER:HASH"),
            (":x", "USER:HASH"),
        ] {
            let (of_groups, (at, reason)) = parse(&format!("alice:{HASH}\n{line}\n"), "").expect_err(line);
            assert!(!of_groups && at == 2 && reason.contains(word), "{line}: {at}: {reason}");
            assert!(!reason.contains("hunter2"), "{reason}");
        }
        assert!(parse("# nobody\n", "").is_err_and(|(_, (_, reason))| reason.contains("has no user")));
        for line in ["ops alice", ": alice", "two words: alice"] {
            let wrong = parse(&format!("alice:{HASH}"), &format!("a: b\n{line}")).expect_err(line);
            assert_eq!((wrong.0, wrong.1.0), (true, 2), "{line}");
        }
    }
}
