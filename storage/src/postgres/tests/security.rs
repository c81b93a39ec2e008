//! TLS, certificates and passwords, and finding the server that takes writes among several hosts.

use super::*;
use coxswain_testing::ports;
use coxswain_testing::postgres::{Postgres as Database, command, own};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use std::os::unix::fs::PermissionsExt;

fn write(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn leaf(authority: &CertifiedIssuer<'static, KeyPair>, name: &str, alternative: &str) -> (String, String) {
    let mut params = CertificateParams::new(vec![alternative.to_owned()]).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate().unwrap();
    (params.signed_by(&key, authority).unwrap().pem(), key.serialize_pem())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_as_secure_as_was_asked_for() {
    let (ours, other) = (authority("ours"), authority("other"));
    let files = tempfile::tempdir().unwrap();
    let (client_cert, client_key) = leaf(&ours, "coxswain", "client.test");
    for (name, text) in
        [("ours.pem", ours.pem()), ("other.pem", other.pem()), ("c.pem", client_cert), ("c.key", client_key)]
    {
        write(&files.path().join(name), &text);
    }
    let port = ports::free();
    let settings = ["listen_addresses=127.0.0.1".to_owned(), format!("port={port}"), "ssl=on".to_owned()];
    let more = ["ssl_ca_file=ca.pem", "password_encryption=scram-sha-256", "ssl_cert_file=s.pem", "ssl_key_file=s.key"];
    let settings: Vec<&str> = settings.iter().map(String::as_str).chain(more).collect();
    let server = Database::start_with(&settings, |data| {
        let (cert, key) = leaf(&ours, "database", "localhost");
        let rules = "local all all trust\nhostssl all coxswain 127.0.0.1/32 scram-sha-256 clientcert=verify-full\n\
                     hostssl all other 127.0.0.1/32 scram-sha-256\n";
        for (name, text) in [("s.pem", cert), ("s.key", key), ("ca.pem", ours.pem()), ("pg_hba.conf", rules.into())] {
            write(&data.join(name), &text);
            own(&data.join(name));
        }
    });
    // The socket's name has the port in it.
    let local = format!("host={} port={port} user=coxswain dbname=postgres", server.directory().display());
    let mut tries = 0;
    let client = loop {
        let connections = super::super::connection::Connections::new(&local, "public").unwrap();
        match connections.connect().await {
            Ok(client) => break client,
            Err(e) if tries > 200 => panic!("{e}"),
            Err(_) => tries += 1,
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let sql = "ALTER USER coxswain PASSWORD 'it''s secret'; CREATE USER other SUPERUSER PASSWORD 'other'";
    client.batch_execute(sql).await.unwrap();

    let dir = files.path().display().to_string();
    let keys = format!("sslcert={dir}/c.pem sslkey={dir}/c.key");
    let opened = async |address: String| {
        let result = Postgres::open(&format!("port={port} dbname=postgres {address}"), Options::default()).await;
        result.map(drop).map_err(|e| e.to_string())
    };
    let secret = r"user=coxswain password='it\'s secret'";
    // Everything right, with the password exchange bound to the connection.
    let full = format!("sslmode=verify-full sslrootcert={dir}/ours.pem channel_binding=require");
    opened(format!("host=localhost {secret} {full} {keys}")).await.unwrap();
    let url = format!(
        "postgres://coxswain:it%27s%20secret@localhost:{port}/postgres?sslmode=verify-full&sslrootcert={dir}/ours.pem\
         &sslcert={dir}/c.pem&sslkey={dir}/c.key"
    );
    Postgres::open(&url, Options::default()).await.map(drop).unwrap();
    for (address, why) in [
        (format!("host=localhost {secret} sslmode=verify-full sslrootcert={dir}/other.pem {keys}"), "certificate"),
        (format!("host=127.0.0.1 {secret} {full} {keys}"), "certificate"),
        (format!("host=localhost user=coxswain password=wrong {full} {keys}"), "password authentication failed"),
        (format!("host=localhost {secret} {full}"), "client certificate"),
        (format!("host=localhost {secret} sslmode=disable"), "no encryption"),
        (format!("host=localhost {secret} sslmode=verify-full {keys}"), "need sslrootcert"),
    ] {
        let refused = opened(address.clone()).await.expect_err(&address);
        assert!(refused.contains(why), "{address}: {refused}");
    }
    // Less was asked for.
    opened(format!("host=127.0.0.1 {secret} sslmode=verify-ca sslrootcert={dir}/ours.pem {keys}")).await.unwrap();
    opened("host=127.0.0.1 user=other password=other sslmode=require".to_owned()).await.unwrap();
    opened("host=127.0.0.1 user=other password=other".to_owned()).await.unwrap();
}

/// A second database follows the first; when the first is lost and the second promoted, the store goes on with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_several_hosts_the_one_that_takes_writes_is_found_again() {
    let mut first = Database::start_with(&["synchronous_standby_names=*", "wal_level=replica"], |_| {});
    let alone = format!("host={} user=coxswain dbname=postgres", first.directory().display());
    let connections = super::super::connection::Connections::new(&alone, "public").unwrap();
    let mut tries = 0;
    while let Err(e) = connections.connect().await {
        tries += 1;
        assert!(tries < 400, "{e}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let second = tempfile::tempdir().unwrap();
    own(second.path());
    let copied = tokio::task::block_in_place(|| {
        command("pg_basebackup")
            .args(["--write-recovery-conf", "--wal-method=stream", "--checkpoint=fast", "--username=coxswain", "-h"])
            .arg(first.directory())
            .arg("-D")
            .arg(second.path().join("data"))
            .status()
            .unwrap()
    });
    assert!(copied.success());
    let second = Database::on(second, Vec::new());
    let hosts = format!("{},{}", second.directory().display(), first.directory().display());
    let url = format!("host={hosts} user=coxswain dbname=postgres");
    let store = Postgres::open(&url, Options::default()).await.unwrap();
    let mut stream = store.changes("/", Revision(0)).await.unwrap();
    let before = store.commit(vec![put("/before", "v", Expect::Absent)]).await.unwrap();
    first.kill();
    let promoted = command("pg_ctl")
        .args(["promote", "-D"])
        .arg(second.directory().join("data"))
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(promoted.success());
    let after = store.commit(vec![put("/after", "v", Expect::Absent)]).await.unwrap();
    assert_eq!(after.0, before.0 + 1);
    assert!(store.get("/before", None).await.unwrap().0.is_some());
    assert_eq!(next(&mut stream).await.revision, before);
    assert_eq!(next(&mut stream).await.revision, after);
}
