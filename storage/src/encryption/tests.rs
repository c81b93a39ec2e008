//! Known values, configurations and their refusals, and a key service of the tests' own.

use super::ciphers::{Cbc, Cipher, Gcm, Secretbox, SeededGcm};
use super::*;
use crate::encryption::kms::testing::KeyService;
use expect_test::{Expect, expect};
use tempfile::TempDir;

const KEY: &str = "/registry/secrets/default/a";

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
}

fn counted(first: u8, count: u8) -> Vec<u8> {
    (first..first + count).collect()
}

/// Made with other libraries (OpenSSL and libsodium) from the definition of each format.
fn known() -> Vec<(&'static str, Box<dyn Cipher>, &'static str)> {
    let (k24, k32) = (counted(0, 24), counted(0, 32));
    vec![
        (
            "AES-128-GCM",
            Box::new(Gcm::new(b"abcdefghijklmnop").unwrap()),
            "6465666768696a6b6c6d6e6fdc1e0f34a2bbd31aca2cd871320f5348764cfd1a146c4423d57b",
        ),
        (
            "AES-192-GCM",
            Box::new(Gcm::new(&k24).unwrap()),
            "6465666768696a6b6c6d6e6f8f01c90f26d96f54a6b4777444db2ce83bedd79d4fce6c50d135",
        ),
        (
            "AES-256-GCM",
            Box::new(Gcm::new(&k32).unwrap()),
            "6465666768696a6b6c6d6e6f2e72ac150d9f37f24b072f853ca2e767c380fbdf8f7a7f26f141",
        ),
        (
            "AES-128-CBC",
            Box::new(Cbc::new(b"abcdefghijklmnop").unwrap()),
            "32333435363738393a3b3c3d3e3f4041a8cbb074e44fb03cc7df19ded4ac8ea8",
        ),
        (
            "AES-192-CBC",
            Box::new(Cbc::new(&k24).unwrap()),
            "32333435363738393a3b3c3d3e3f404149f20346d49f2068ad6f3da82655afd0",
        ),
        (
            "AES-256-CBC",
            Box::new(Cbc::new(&k32).unwrap()),
            "32333435363738393a3b3c3d3e3f4041b003d81899b8d83d927428efce06038b",
        ),
        (
            "secretbox",
            Box::new(Secretbox::new(&k32).unwrap()),
            "000102030405060708090a0b0c0d0e0f1011121314151617b5567e17f90cb249c013fd6f9b546ca538964a3cb3bcc37cce59",
        ),
        (
            "seeded AES-256-GCM",
            Box::new(SeededGcm::new(&counted(64, 32)).unwrap()),
            "808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f6465666768696a6b6c6d6e6fc6c16a76175d9d9fb65b324d09eaffe32a7bfaadf45daa44624c",
        ),
    ]
}

#[test]
fn values_sealed_by_others_open() {
    for (name, cipher, sealed) in known() {
        let opened = cipher.open(&bytes(sealed), KEY.as_bytes());
        assert_eq!(opened.as_deref(), Ok(&b"firstvalue"[..]), "{name}");
    }
}

#[test]
fn what_is_sealed_opens_and_what_was_changed_does_not() {
    for (name, cipher, known) in known() {
        for value in [&b""[..], b"x", b"sixteen bytes ok", &[7; 5000]] {
            let sealed = cipher.seal(value, KEY.as_bytes()).unwrap();
            assert_ne!(sealed, cipher.seal(value, KEY.as_bytes()).unwrap(), "{name}: every value has its own nonce");
            assert_eq!(cipher.open(&sealed, KEY.as_bytes()).unwrap(), value, "{name}");
        }
        for cut in 0..bytes(known).len() {
            let _ = cipher.open(&bytes(known)[..cut], KEY.as_bytes());
        }
        if name.contains("CBC") {
            continue;
        }
        let mut changed = bytes(known);
        *changed.last_mut().unwrap() ^= 1;
        assert!(cipher.open(&changed, KEY.as_bytes()).is_err(), "{name}");
        if name.contains("GCM") {
            let moved = cipher.open(&bytes(known), b"/registry/secrets/default/b");
            assert_eq!(moved.unwrap_err().message, "cipher: message authentication failed", "{name}");
        }
    }
}

struct File(TempDir);

impl File {
    fn new(text: &str) -> File {
        let file = File(tempfile::tempdir().unwrap());
        file.write(text);
        file
    }

    fn write(&self, text: &str) {
        std::fs::write(self.path(), text).unwrap();
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("encryption.yaml")
    }

    async fn load(&self, reload: bool) -> Result<Encryption, ConfigError> {
        Encryption::load(&self.path(), reload, "server").await
    }
}

fn configuration(rules: &str) -> String {
    format!("apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n{rules}")
}

const GCM: &str = "aesgcm: {keys: [{name: a, secret: YWJjZGVmZ2hpamtsbW5vcA==}]}";
const CBC: &str = "aescbc: {keys: [{name: b, secret: YWJjZGVmZ2hpamtsbW5vcA==}]}";

fn secrets(providers: &[&str]) -> String {
    let list: String = providers.iter().map(|p| format!("  - {p}\n")).collect();
    configuration(&format!("- resources: [secrets]\n  providers:\n{list}"))
}

#[tokio::test]
async fn the_first_provider_writes_and_all_read() {
    let value = Bytes::from_static(b"k8s\0value");
    let gcm = File::new(&secrets(&[GCM, CBC, "identity: {}"])).load(false).await.unwrap().for_resource("", "secrets");
    let sealed = gcm.seal(value.clone(), KEY).await.unwrap();
    assert!(sealed.starts_with(b"k8s:enc:aesgcm:v1:a:"));
    assert_eq!(gcm.open(sealed.clone(), KEY).await, Ok(Opened { value: value.clone(), stale: false }));
    assert_eq!(gcm.open(value.clone(), KEY).await, Ok(Opened { value: value.clone(), stale: true }));

    let cbc = File::new(&secrets(&[CBC, GCM])).load(false).await.unwrap().for_resource("", "secrets");
    assert!(cbc.seal(value.clone(), KEY).await.unwrap().starts_with(b"k8s:enc:aescbc:v1:b:"));
    assert_eq!(cbc.open(sealed.clone(), KEY).await, Ok(Opened { value: value.clone(), stale: true }));
    assert_eq!(cbc.open(value.clone(), KEY).await.unwrap_err().message, "no matching prefix found");

    // Another key of the same name and provider: both are tried.
    let other = "aesgcm: {keys: [{name: a, secret: AAAAAAAAAAAAAAAAAAAAAA==}]}";
    let both = File::new(&secrets(&[other, GCM])).load(false).await.unwrap().for_resource("", "secrets");
    assert_eq!(both.open(sealed.clone(), KEY).await, Ok(Opened { value: value.clone(), stale: true }));
    let one = File::new(&secrets(&[other])).load(false).await.unwrap().for_resource("", "secrets");
    assert_eq!(one.open(sealed.clone(), KEY).await.unwrap_err().message, "cipher: message authentication failed");

    // Decrypting for good: identity first.
    let identity = File::new(&secrets(&["identity: {}", GCM])).load(false).await.unwrap().for_resource("", "secrets");
    assert_eq!(identity.seal(value.clone(), KEY).await.unwrap(), value);
    assert_eq!(identity.open(sealed.clone(), KEY).await, Ok(Opened { value, stale: true }));
    let nobody = File::new(&secrets(&[GCM])).load(false).await.unwrap().for_resource("", "configmaps");
    let refusal = nobody.open(sealed, KEY).await.unwrap_err();
    assert_eq!(refusal.message, "identity transformer tried to read encrypted data");
}

#[tokio::test]
async fn the_most_specific_rule_covers_a_resource() {
    let rules = format!(
        "- resources: [secrets]\n  providers: [{{{GCM}}}]\n- resources: ['*.apps']\n  providers: [{{{CBC}}}]\n\
         - resources: ['*.']\n  providers: [{{identity: {{}}}}]\n- resources: ['*.*']\n  providers: [{{{GCM}}}]\n"
    );
    let encryption = File::new(&configuration(&rules)).load(false).await.unwrap();
    for (group, resource, prefix) in [
        ("", "secrets", "k8s:enc:aesgcm:"),
        ("apps", "deployments", "k8s:enc:aescbc:"),
        ("", "configmaps", "{}"),
        ("batch", "jobs", "k8s:enc:aesgcm:"),
    ] {
        let sealed = encryption.for_resource(group, resource).seal(Bytes::from_static(b"{}"), KEY).await.unwrap();
        assert!(sealed.starts_with(prefix.as_bytes()), "{resource}.{group}");
    }
}

async fn check_refusal(text: &str, expected: Expect) {
    let file = File::new(text);
    let refusal = file.load(false).await.err().map(|e| e.to_string()).unwrap_or_default();
    expected.assert_eq(&refusal.replace(&file.path().display().to_string(), "PATH"));
}

#[tokio::test]
async fn configurations_are_refused_in_upstreams_words() {
    check_refusal("", expect![[r#"error while parsing file: error while loading file: encryption provider configuration file "PATH" is empty"#]]).await;
    check_refusal(
        &configuration(""),
        expect!["error while parsing file: resources: Required value: at least one resources is required"],
    )
    .await;
    check_refusal(
        &secrets(&["aesgcm: {keys: [{name: a, secret: dG9vIHNob3J0}, {name: b, secret: '?'}, {secret: ''}]}"]),
        expect![[r#"error while parsing file: [resources[0].providers[0].aesgcm.keys[0].secret: Invalid value: "REDACTED": secret is not of the expected length, got 9, expected one of [16 24 32], resources[0].providers[0].aesgcm.keys[1].secret: Invalid value: "REDACTED": secrets must be base64 encoded, resources[0].providers[0].aesgcm.keys[2].name: Required value: name is a mandatory field for a key, resources[0].providers[0].aesgcm.keys[2].secret: Required value: secret is a mandatory field for a key]"#]],
    )
    .await;
    check_refusal(
        &secrets(&["kms: {apiVersion: v2, name: 'a:b', endpoint: 'tcp://x', cachesize: 5}"]),
        expect![[r#"error while parsing file: [resources[0].providers[0].kms.name: Invalid value: "a:b": invalid KMS provider name a:b, must not contain ':', resources[0].providers[0].kms.endpoint: Invalid value: "tcp://x": unsupported scheme "tcp" for KMS provider, only unix is supported, resources[0].providers[0].kms.cachesize: Invalid value: 5: cachesize is not supported in v2]"#]],
    )
    .await;
    check_refusal(
        &secrets(&["kms: {name: a, endpoint: 'unix:///x'}"]),
        expect!["error while building transformers: KMSv1 is deprecated and will only receive security updates going forward. Use KMSv2 instead.  Set --feature-gates=KMSv1=true to use the deprecated KMSv1 feature."],
    )
    .await;
    check_refusal(&secrets(&["identity: {}, aesgcm: {keys: []}".replace(", ", "\n    ").as_str()]), expect![[r#"error while parsing file: resources[0].providers[0]: Invalid value: {}: more than one provider specified in a single element, should split into different list elements"#]]).await;
    check_refusal(&secrets(&["identity: {a: 1}"]), expect![[r#"error while parsing file: error decoding encryption provider configuration file "PATH": strict decoding error: unknown field "resources[0].providers[0].identity.a""#]]).await;
    check_refusal(
        &configuration("- resources: ['*.*', secrets, secrets, Pods, '*', events.events.k8s.io]\n  providers: [{identity: {}}]\n"),
        expect![[r#"error while parsing file: [resources[0].resources: Invalid value: ["*.*","secrets","secrets","Pods","*","events.events.k8s.io"]: the same resource cannot be specified multiple times, resources[0].resources: Invalid value: ["*.*","secrets","secrets","Pods","*","events.events.k8s.io"]: using overlapping resources such as 'secrets' and '*.' in the same resource list is not allowed as they will be masked, resources[0].resources[3]: Invalid value: "Pods": resource name should not contain capital letters, resources[0].resources[4]: Invalid value: "*": use '*.' to encrypt all the resources from core API group or *.* to encrypt all resources, resources[0].resources[5]: Invalid value: "events.events.k8s.io": '*.events.k8s.io' objects are stored using the 'events' API group in etcd. Use 'events' instead in the config file]"#]],
    )
    .await;
    check_refusal(
        &configuration("- resources: ['*.*']\n  providers: [{identity: {}}]\n- resources: [secrets]\n  providers: [{identity: {}}]\n"),
        expect![[r#"error while building transformers: resource "secrets" is masked by earlier rule "*.*""#]],
    )
    .await;
}

#[tokio::test]
async fn a_changed_file_is_taken_over_and_a_broken_one_is_not() {
    let file = File::new(&secrets(&["identity: {}"]));
    let encryption = file.load(true).await.unwrap();
    assert!(encryption.has_health_check() && encryption.reloads());
    let secrets_of = encryption.for_resource("", "secrets");
    let value = Bytes::from_static(b"{}");
    assert_eq!(secrets_of.seal(value.clone(), KEY).await.unwrap(), value);
    assert!(!reload_once(&file.path(), &encryption.loaded, "server").await.unwrap());

    file.write(&secrets(&[GCM, "identity: {}"]));
    assert!(reload_once(&file.path(), &encryption.loaded, "server").await.unwrap());
    assert!(secrets_of.seal(value.clone(), KEY).await.unwrap().starts_with(b"k8s:enc:aesgcm:v1:a:"));
    assert!(secrets_of.open(value.clone(), KEY).await.unwrap().stale);

    file.write("kind: Nonsense");
    assert!(reload_once(&file.path(), &encryption.loaded, "server").await.is_err());
    assert!(secrets_of.seal(value, KEY).await.unwrap().starts_with(b"k8s:enc:aesgcm:v1:a:"));
}

fn kms(service: &KeyService) -> String {
    format!("kms: {{apiVersion: v2, name: vault, endpoint: '{}', timeout: 1s}}", service.endpoint())
}

#[tokio::test]
async fn a_key_service_seals_the_seed_once() {
    let service = KeyService::start();
    let file = File::new(&secrets(&[&kms(&service), "identity: {}"]));
    let encryption = file.load(false).await.unwrap();
    assert!(encryption.has_health_check());
    encryption.check().await.unwrap();
    let transformer = encryption.for_resource("", "secrets");
    let value = Bytes::from_static(b"k8s\0secret");
    let mut sealed = Vec::new();
    for i in 0..10 {
        sealed.push(transformer.seal(value.clone(), &format!("{KEY}{i}")).await.unwrap());
    }
    assert!(sealed[0].starts_with(b"k8s:enc:kms:v2:vault:"));
    assert_eq!(service.calls(), (1, 0), "one seed for all");

    // Another server, such as this one after a restart, has the seed opened once.
    let again = file.load(false).await.unwrap().for_resource("", "secrets");
    for (i, sealed) in sealed.iter().enumerate() {
        let opened = again.open(sealed.clone(), &format!("{KEY}{i}")).await;
        assert_eq!(opened, Ok(Opened { value: value.clone(), stale: false }));
    }
    assert_eq!(service.calls(), (2, 1));
    assert!(again.open(sealed[0].clone(), "/registry/secrets/default/other").await.is_err());
}

#[tokio::test]
async fn a_new_key_of_the_service_makes_values_stale() {
    let service = KeyService::start();
    let file = File::new(&secrets(&[&kms(&service)]));
    let old = file.load(false).await.unwrap().for_resource("", "secrets");
    let value = Bytes::from_static(b"{}");
    let sealed = old.seal(value.clone(), KEY).await.unwrap();
    service.set_key("second");
    let new = file.load(false).await.unwrap().for_resource("", "secrets");
    assert_eq!(new.open(sealed, KEY).await, Ok(Opened { value: value.clone(), stale: true }));
    let sealed = new.seal(value, KEY).await.unwrap();
    assert!(!new.open(sealed, KEY).await.unwrap().stale);
}

#[tokio::test]
async fn an_unhealthy_service_is_told_of_and_does_not_keep_the_server_from_starting() {
    let service = KeyService::start();
    service.set_health("sealed");
    let encryption = File::new(&secrets(&[&kms(&service), "identity: {}"])).load(false).await.unwrap();
    let why = encryption.check().await.unwrap_err();
    assert_eq!(
        why,
        "kms-provider-0: kmsv2 Provider vault is not healthy, error: got unexpected healthz status: sealed"
    );

    let nobody = secrets(&["kms: {apiVersion: v2, name: gone, endpoint: 'unix:///nowhere/kms.sock', timeout: 100ms}"]);
    let encryption = File::new(&nobody).load(false).await.unwrap();
    let why = encryption.check().await.unwrap_err();
    assert!(
        why.starts_with("kms-provider-0: failed to perform status section of the healthz check for KMS Provider gone"),
        "{why}"
    );
    let refusal = encryption.for_resource("", "secrets").seal(Bytes::from_static(b"{}"), KEY).await.unwrap_err();
    assert_eq!(refusal.message, "got unexpected nil transformer");
}
