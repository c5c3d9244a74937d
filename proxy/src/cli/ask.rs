//! Asks the running proxy by its admin listener.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;

use crate::config::Config;
use crate::server::GUARD;

/// Largest answer of the running proxy. Units: bytes.
const ANSWER_MAX: usize = 64 << 20;

/// What the running proxy answers to a request; none where no proxy runs, or it has no admin listener.
pub(super) async fn ask<T: DeserializeOwned>(
    config: &Config,
    method: Method,
    target: &str,
    limit: Duration,
) -> anyhow::Result<Option<T>> {
    let Some(admin) = config.admin else { return Ok(None) };
    let Ok(stream) = TcpStream::connect(admin).await else { return Ok(None) };
    let answer = tokio::time::timeout(limit, exchange(stream, method, target));
    answer.await.context("the running proxy does not answer")?.map(Some)
}

/// Says that no proxy answers.
pub(super) fn no_proxy(config: &Config) -> ExitCode {
    match config.admin {
        Some(admin) => eprintln!("tidegate: no proxy answers at {admin}, the address `admin` of {}", config.source),
        None => eprintln!("tidegate: {} has `admin = \"off\"`: there is nobody to ask", config.source),
    }
    ExitCode::FAILURE
}

async fn exchange<T: DeserializeOwned>(stream: TcpStream, method: Method, target: &str) -> anyhow::Result<T> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(target)
        .header("host", "tidegate")
        .header(GUARD, "1")
        .body(Empty::<bytes::Bytes>::new())?;
    let answer = sender.send_request(request).await?;
    let status = answer.status();
    let body =
        Limited::new(answer.into_body(), ANSWER_MAX).collect().await.map_err(anyhow::Error::from_boxed)?.to_bytes();
    connection.abort();
    if status != StatusCode::OK {
        bail!("the program on the admin address answers {status}: {}", String::from_utf8_lossy(&body).trim());
    }
    serde_json::from_slice(&body).context("the program on the admin address is no tidegate")
}
