//! An etcd of the test's own, and etcd's own tool to look into it.

use anyhow::Result;
use coxswain_storage::Storage;
use coxswain_storage::etcd::Options;
use std::sync::Arc;
use std::time::Duration;

pub struct Etcd(coxswain_testing::etcd::Etcd);

impl Etcd {
    pub async fn start(root: &str) -> Result<(Etcd, Arc<dyn Storage>)> {
        let etcd = Etcd(coxswain_testing::etcd::Etcd::start());
        let options = Options { root: root.to_owned(), ..Options::default() };
        let mut tries = 0;
        loop {
            match coxswain_storage::Etcd::open(&[etcd.0.url().to_owned()], options.clone()).await {
                Ok(storage) => return Ok((etcd, Arc::new(storage))),
                Err(error) if tries > 100 => return Err(error.into()),
                Err(_) => tries += 1,
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// The value of a key, as an administrator would look at it.
    pub fn get(&self, key: &str) -> Option<Vec<u8>> {
        let mut value = self.0.etcdctl(&["get", key, "--print-value-only"]);
        // The tool ends each value with a line feed.
        value.pop()?;
        Some(value)
    }

    pub fn has_lease(&self, key: &str) -> bool {
        let fields = String::from_utf8_lossy(&self.0.etcdctl(&["get", key, "--write-out=fields"])).into_owned();
        fields.lines().any(|line| line.starts_with("\"Lease\" :") && !line.ends_with(" 0"))
    }
}
