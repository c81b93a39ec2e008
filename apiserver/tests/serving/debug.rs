//! `/debug`: who may profile the process, for how long, and how it is switched off.

use super::{Cluster, admin};
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use coxswain_apiserver::request::User;
use http::Request;
use http_body_util::{BodyExt, Full};
use std::time::Duration;
use tower::ServiceExt;

async fn ask(cluster: &Cluster, user: User, method: &str, path: &str, body: &'static str) -> Result<(u16, Bytes)> {
    let request = Request::builder().method(method).uri(path).header("accept-encoding", "gzip");
    let request = request.body(Full::new(Bytes::from_static(body.as_bytes())))?;
    let response = cluster.server.service_for(user).oneshot(request).await?;
    ensure!(!response.headers().contains_key("content-encoding"), "{path} was compressed");
    let code = response.status().as_u16();
    Ok((code, response.into_body().collect().await?.to_bytes()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_profile_may_take_longer_than_other_requests() -> Result<()> {
    let rbac = "RBAC".parse().ok().context("a mode")?;
    let cluster = Cluster::start_with(|config| {
        config.request_timeout = Duration::from_millis(500);
        config.authorization.modes = vec![rbac];
    })
    .await?;
    let profile = "/debug/pprof/profile?seconds=1";
    let (code, file) = ask(&cluster, admin(), "GET", profile, "").await?;
    ensure!(code == 200 && file.starts_with(&[0x1f, 0x8b]), "{code}: {file:?}");
    let put = ask(&cluster, admin(), "PUT", "/debug/flags/v", "3").await?;
    ensure!(put == (200, "successfully set klog.logging.verbosity to 3\n".into()), "{put:?}");

    let nobody = || User { name: "nobody".into(), ..User::default() };
    for (method, path) in [("GET", profile), ("GET", "/debug/pprof/"), ("PUT", "/debug/flags/v")] {
        let (code, _) = ask(&cluster, nobody(), method, path, "3").await?;
        ensure!(code == 403, "{method} {path} by nobody: {code}");
    }
    let (_, index) = cluster.json("GET", "/", None).await?;
    let listed = index["paths"].as_array().context("paths")?;
    ensure!(!listed.iter().any(|path| path.as_str().is_some_and(|p| p.starts_with("/debug"))), "listed: {index}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_profiling_there_is_nothing_to_debug() -> Result<()> {
    let cluster = Cluster::start_with(|config| config.profiling = false).await?;
    for path in ["/debug/pprof", "/debug/pprof/", "/debug/pprof/profile?seconds=1", "/debug/flags", "/debug/flags/v"] {
        for method in ["GET", "PUT"] {
            let answer = ask(&cluster, admin(), method, path, "3").await?;
            ensure!(answer == (404, "404 page not found\n".into()), "{method} {path}: {answer:?}");
        }
    }
    Ok(())
}
