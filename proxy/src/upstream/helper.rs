//! Credential helpers: programs `docker-credential-NAME` that know secrets.
//!
//! Source: docker-credential-helpers, "Development": `get` reads the server's address and writes JSON.

use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use tokio::sync::Semaphore;

/// How long a helper may take.
const TIME_MAX: Duration = Duration::from_secs(10);
/// Largest answer of a helper. Units: bytes.
const OUTPUT_MAX: usize = 64 << 10;
/// Helpers at once.
static RUNNING: Semaphore = Semaphore::const_new(4);
/// What a helper says when it knows nothing, which is no failure.
const NOTHING: &str = "credentials not found";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: String,
}

/// Asks a helper for a user and a secret. `name`: as in `docker-credential-NAME`, or an absolute path. No shell.
///
/// # Errors
/// Which helper fails, without what it wrote: a secret may stand in it.
pub(super) async fn get(name: &str, server: &str, limit: Duration) -> Result<Option<(String, String)>, String> {
    let limit = limit.min(TIME_MAX);
    let fail = |reason: &str| Err(format!("the credential helper {} {reason}", name.escape_debug()));
    let program = match name.strip_prefix('/') {
        Some(_) => name.to_owned(),
        None if !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) => {
            format!("docker-credential-{name}")
        }
        None => return fail("has no right name: it must be the NAME of docker-credential-NAME, or an absolute path"),
    };
    let Ok(asked) = tokio::time::timeout(limit, ask(&program, server)).await else {
        return fail(&format!("does not answer within {limit:?}"));
    };
    let (good, output) = match asked {
        Ok(answer) => answer,
        Err(err) => return fail(&format!("cannot be run as {program}: {err}")),
    };
    if !good {
        let nothing = String::from_utf8_lossy(&output).contains(NOTHING);
        return if nothing { Ok(None) } else { fail(&format!("fails for {server}; run it by hand to see why")) };
    }
    match serde_json::from_slice::<Answer>(&output) {
        Ok(answer) if answer.secret.is_empty() => Ok(None),
        Ok(answer) => Ok(Some((answer.username, answer.secret))),
        Err(_) => fail(&format!("writes no JSON with `Username` and `Secret` for {server}")),
    }
}

/// Runs it; it is killed when this future is dropped.
async fn ask(program: &str, server: &str) -> std::io::Result<(bool, Vec<u8>)> {
    let _running = RUNNING.acquire().await.map_err(std::io::Error::other)?;
    let mut child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read what it is asked for may answer all the same.
        let _ = stdin.write_all(server.as_bytes()).await;
    }
    let mut output = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(OUTPUT_MAX as u64 + 1).read_to_end(&mut output).await?;
    }
    if output.len() > OUTPUT_MAX {
        return Err(std::io::Error::other(format!("it writes more than {OUTPUT_MAX} bytes")));
    }
    Ok((child.wait().await?.success(), output))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    async fn said(script: &str) -> Result<Option<(String, String)>, String> {
        let folder = tempfile::tempdir().expect("a folder");
        let program = folder.path().join("docker-credential-test");
        // Written under another name first, so that no other test's fork holds it open for writing when it is run.
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).expect("a file");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("permissions");
        loop {
            match get(program.to_str().expect("a path"), "quay.io", TIME_MAX).await {
                Err(reason) if reason.contains("Text file busy") => tokio::task::yield_now().await,
                answer => return answer,
            }
        }
    }

    #[tokio::test]
    async fn a_helper_is_asked_for_one_server_and_its_answer_is_bounded() {
        let answer = said("test \"$1\" = get && read -r server; echo \"{\\\"ServerURL\\\":\\\"$server\\\",\\\"Username\\\":\\\"u\\\",\\\"Secret\\\":\\\"$server-s\\\"}\"").await;
        assert_eq!(answer, Ok(Some(("u".to_owned(), "quay.io-s".to_owned()))));
        assert_eq!(said("echo 'credentials not found in native keychain'; exit 1").await, Ok(None));
        let quiet = said("echo hunter2; exit 1").await.expect_err("it fails");
        assert!(quiet.contains("fails for quay.io") && !quiet.contains("hunter2"), "{quiet}");
        let noise = said("echo hunter2").await.expect_err("no JSON");
        assert!(noise.contains("no JSON") && !noise.contains("hunter2"), "{noise}");
        assert!(said("yes hunter2").await.expect_err("too much").contains("more than"), "it is cut off");
        let late = get("/bin/sleep", "quay.io", Duration::from_millis(1)).await;
        assert!(late.is_err_and(|reason| reason.contains("/bin/sleep")), "it is named");
        assert!(get("../x", "quay.io", TIME_MAX).await.is_err());
        assert!(
            get("no-such-helper-here", "quay.io", TIME_MAX)
                .await
                .expect_err("none")
                .contains("docker-credential-no-such")
        );
    }
}
