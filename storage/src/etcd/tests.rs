//! The contract on etcd servers of the test's own.

use super::{Access, Etcd, Options, VALUE_BYTES_MAX};
use crate::contract::{self, Factory, put};
use crate::{Error, Expect, Revision, Storage};
use async_trait::async_trait;
use coxswain_testing::etcd::Etcd as Server;
use coxswain_testing::ports;
use futures::StreamExt;
use parking_lot::Mutex;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

async fn open(urls: &[String], options: Options) -> Etcd {
    let mut tries = 0;
    loop {
        match Etcd::open(urls, options.clone()).await {
            Ok(store) => return store,
            Err(error) if tries > 100 => panic!("{error}"),
            Err(_) => tries += 1,
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[derive(Default)]
struct Servers(Mutex<Option<Server>>);

#[async_trait]
impl Factory for Servers {
    async fn fresh(&self) -> Arc<dyn Storage> {
        *self.0.lock() = Some(Server::start());
        self.reopen().await
    }

    async fn reopen(&self) -> Arc<dyn Storage> {
        let url = self.0.lock().as_ref().unwrap().url().to_owned();
        Arc::new(open(&[url], Options::default()).await)
    }

    fn value_bytes_max(&self) -> usize {
        VALUE_BYTES_MAX
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_contract_holds() {
    contract::run(&Servers::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_go_on_without_a_gap_when_etcd_was_killed() {
    let servers = Servers::default();
    let store = servers.fresh().await;
    let start = store.current_revision().await.unwrap();
    let mut stream = store.changes("/", start).await.unwrap();
    let mut acknowledged = Vec::new();
    for round in 0..3 {
        let mut number = 0;
        while number < 20 {
            number += 1;
            let key = format!("/{round}/{number}");
            match store.commit(vec![put(&key, "v", Expect::Any)]).await {
                Ok(revision) => acknowledged.push((revision, key)),
                Err(Error::Unavailable { .. }) => {
                    number -= 1;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                Err(other) => panic!("{other}"),
            }
        }
        servers.0.lock().as_mut().unwrap().kill_and_restart();
    }
    let mut last = start;
    let mut seen = Vec::new();
    while last < acknowledged.last().unwrap().0 {
        let commit = tokio::time::timeout(Duration::from_secs(30), stream.next()).await.expect("a change was due");
        let commit = commit.unwrap().unwrap();
        for change in &commit.changes {
            assert_eq!(commit.revision.0, last.0 + 1, "no gap");
            last = commit.revision;
            seen.push((commit.revision, change.key.to_string()));
        }
    }
    for commit in acknowledged {
        assert!(seen.contains(&commit), "{commit:?} was acknowledged");
    }
}

/// An authority, and a certificate of it for a server at 127.0.0.1 or for a client; in PEM, with the keys.
struct Pki {
    authority: rcgen::CertifiedIssuer<'static, rcgen::KeyPair>,
}

impl Pki {
    fn new() -> Pki {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "etcd-ca");
        let authority = rcgen::CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate().unwrap()).unwrap();
        Pki { authority }
    }

    /// Writes `NAME.crt` and `NAME.key`.
    fn issue(&self, directory: &Path, name: &str) -> (String, String) {
        let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.extended_key_usages =
            vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let key = rcgen::KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.authority).unwrap();
        let write = |suffix: &str, text: String| {
            let path = directory.join(format!("{name}.{suffix}"));
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        (write("crt", cert.pem()), write("key", key.serialize_pem()))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_and_client_certificates_are_spoken() {
    let files = tempfile::tempdir().unwrap();
    let pki = Pki::new();
    let ca = files.path().join("ca.crt");
    std::fs::write(&ca, pki.authority.pem()).unwrap();
    let (server_cert, server_key) = pki.issue(files.path(), "server");
    let (cert, key) = pki.issue(files.path(), "client");
    let mut server = Server::start_with("https", |_| {
        let ca = ca.to_str().unwrap();
        ["--cert-file", &server_cert, "--key-file", &server_key, "--trusted-ca-file", ca, "--client-cert-auth"]
            .map(str::to_owned)
            .to_vec()
    });
    let urls = [server.url().to_owned()];
    let access = Access {
        ca_file: Some(ca.clone()),
        cert_file: Some(cert.into()),
        key_file: Some(key.into()),
        ..Access::default()
    };
    let store = open(&urls, Options { access: access.clone(), ..Options::default() }).await;
    let revision = store.commit(vec![put("/registry/a", "v", Expect::Absent)]).await.unwrap();
    assert_eq!(store.get("/registry/a", None).await.unwrap().0.unwrap().modified, revision);
    let mut stream = store.changes("/", Revision(revision.0 - 1)).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap().revision, revision);
    assert!(store.size().await.unwrap().unwrap() > 0);

    let nobody = Access { cert_file: None, key_file: None, ..access.clone() };
    assert!(Etcd::open(&urls, Options { access: nobody, ..Options::default() }).await.is_err());
    let strangers = files.path().join("strangers.crt");
    std::fs::write(&strangers, Pki::new().authority.pem()).unwrap();
    let wary = Access { ca_file: Some(strangers), ..access };
    assert!(Etcd::open(&urls, Options { access: wary, ..Options::default() }).await.is_err());

    // Everything is issued anew, by another authority even. Who only remembered what the files held could not come back.
    let renewed = Pki::new();
    std::fs::write(&ca, renewed.authority.pem()).unwrap();
    renewed.issue(files.path(), "server");
    renewed.issue(files.path(), "client");
    server.kill_and_restart();
    let begun = std::time::Instant::now();
    while let Err(error) = store.get("/registry/a", None).await {
        assert!(begun.elapsed() < Duration::from_secs(40), "{error}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_with_rights_on_the_prefix_alone_is_enough() {
    let server = Server::start();
    drop(open(&[server.url().to_owned()], Options::default()).await);
    for command in [
        "role add apiserver",
        "role grant-permission apiserver --prefix=true readwrite /registry/",
        "role grant-permission apiserver readwrite compact_rev_key",
        "user add root:r00t",
        "user grant-role root root",
        "user add apiserver:secret",
        "user grant-role apiserver apiserver",
        "auth enable",
    ] {
        server.etcdctl(&command.split(' ').collect::<Vec<_>>());
    }
    let user = |name: &str, password: &str| {
        let access = Access { user: Some((name.to_owned(), password.to_owned())), ..Access::default() };
        Options { access, ..Options::default() }
    };
    let urls = [server.url().to_owned()];
    assert!(Etcd::open(&urls, Options::default()).await.is_err());
    assert!(Etcd::open(&urls, user("apiserver", "wrong")).await.is_err());
    let store = Etcd::open(&urls, user("apiserver", "secret")).await.unwrap();
    let start = store.current_revision().await.unwrap();
    let mut stream = store.changes("/registry/", start).await.unwrap();
    let revision = store.commit(vec![put("/registry/a", "v", Expect::Absent)]).await.unwrap();
    let seen = loop {
        let changes = stream.next().await.unwrap().unwrap();
        if !changes.changes.is_empty() {
            break changes.revision;
        }
    };
    assert_eq!(seen, revision);
    assert!(store.commit(vec![put("/elsewhere", "v", Expect::Absent)]).await.is_err());
    // In the URL, as etcd's own tools take it.
    let url = server.url().replace("http://", "http://apiserver:secret@");
    assert!(Etcd::open(&[url], Options::default()).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_is_gone_is_passed_over() {
    let server = Server::start();
    let nobody = format!("http://127.0.0.1:{}", ports::free());
    let store = open(&[nobody.clone(), server.url().to_owned(), nobody], Options::default()).await;
    for i in 0..20 {
        store.commit(vec![put(&format!("/registry/{i}"), "v", Expect::Absent)]).await.unwrap();
    }
    let start = store.current_revision().await.unwrap();
    let mut stream = store.changes("/registry/", start).await.unwrap();
    let revision = store.commit(vec![put("/registry/x", "v", Expect::Absent)]).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap().revision, revision);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_restart_is_not_seen_by_readers_of_keys() {
    let mut server = Server::start();
    let store = open(&[server.url().to_owned()], Options::default()).await;
    store.commit(vec![put("/registry/a", "v", Expect::Absent)]).await.unwrap();
    server.kill();
    let (answer, ()) = tokio::join!(store.get("/registry/a", None), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        server.kill_and_restart();
    });
    assert!(answer.unwrap().0.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_servers_compact_once_in_an_interval() {
    let server = Server::start();
    let options = Options { keep_history: Duration::from_millis(400), ..Options::default() };
    let first = open(&[server.url().to_owned()], options.clone()).await;
    let second = open(&[server.url().to_owned()], options).await;
    let mut last = Revision(0);
    for i in 0..30 {
        last = first.commit(vec![put("/registry/a", i.to_string(), Expect::Any)]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // Three seconds hold seven intervals: either server alone would write the key as often.
    let written = String::from_utf8(server.etcdctl(&["get", "compact_rev_key", "--write-out=fields"])).unwrap();
    let version: u32 = written.lines().find_map(|l| l.strip_prefix("\"Version\" : ")).unwrap().trim().parse().unwrap();
    assert!((2..=9).contains(&version), "{written}");
    assert!(matches!(second.get("/registry/a", Some(Revision(3))).await, Err(Error::Compacted { .. })));
    assert!(second.get("/registry/a", Some(last)).await.is_ok());
}
