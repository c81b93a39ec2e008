//! Runs `nft` with scripts. A script is one transaction: all of it holds or nothing.

use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::Error;

/// The table of each family, named as upstream's.
pub const TABLE: &str = "kube-proxy";
pub const FAMILIES: [&str; 2] = ["ip", "ip6"];

/// Applies a script.
pub async fn apply(script: &str) -> Result<(), Error> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // Should nft end early, its exit status says why.
        let _ = stdin.write_all(script.as_bytes()).await;
    }
    let output = child.wait_with_output().await?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(Error::Nft(text.lines().take(5).collect::<Vec<_>>().join("; ")))
}

/// Removes the tables, whether they are there or not. A machine without nft has none.
pub async fn delete_tables() -> Result<(), Error> {
    let script: String =
        FAMILIES.iter().map(|f| format!("add table {f} {TABLE}\ndelete table {f} {TABLE}\n")).collect();
    match apply(&script).await {
        Err(Error::Spawn(error)) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Whether the table of a family stands, with the chain that everything goes through.
pub async fn is_there(ipv6: bool) -> bool {
    let status = Command::new("nft")
        .args(["list", "chain", FAMILIES[usize::from(ipv6)], TABLE, "services"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .status();
    status.await.is_ok_and(|status| status.success())
}
