//! What ARCHITECTURE.md says of the crates, held: who may use whom, and that no file lies outside the module tree.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace").to_owned()
}

/// Which of our crates each crate may use. Tests of a crate obey the same rule.
fn allowed() -> BTreeMap<&'static str, &'static [&'static str]> {
    const COMPONENT: &[&str] = &["api", "client"];
    const WITH_PROFILES: &[&str] = &["api", "client", "profiling"];
    BTreeMap::from([
        ("api", &[][..]),
        ("storage", &["testing"][..]),
        ("cel", &["api"][..]),
        ("profiling", &[][..]),
        ("apiserver", &["api", "cel", "profiling", "storage", "testing"][..]),
        ("client", &["api"][..]),
        ("scheduler", COMPONENT),
        ("controllers", COMPONENT),
        ("cloud", COMPONENT),
        ("kubelet", WITH_PROFILES),
        ("proxy", COMPONENT),
        ("conformance", &["client", "testing"][..]),
        ("bench", &["client", "storage"][..]),
        ("testing", &[][..]),
        ("testapp", &[][..]),
        (
            "coxswain",
            &[
                "api",
                "storage",
                "apiserver",
                "client",
                "scheduler",
                "controllers",
                "cloud",
                "kubelet",
                "profiling",
                "proxy",
            ][..],
        ),
        ("fuzz", &["api", "apiserver", "kubelet", "storage"][..]),
    ])
}

#[test]
fn crates_use_only_what_lies_above_them() {
    for (name, may_use) in allowed() {
        let manifest = fs::read_to_string(root().join(name).join("Cargo.toml")).expect("every crate has a manifest");
        for line in manifest.lines().filter(|l| l.starts_with("coxswain-")) {
            let used = line.trim_start_matches("coxswain-").split(['.', ' ', '=']).next().unwrap_or_default();
            assert!(may_use.contains(&used), "{name} must not use {used}");
        }
    }
}

#[test]
fn every_member_of_the_workspace_has_a_rule() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("the workspace has a manifest");
    let line = manifest.lines().find(|l| l.starts_with("members")).expect("the workspace lists its members");
    for member in line.split('"').skip(1).step_by(2) {
        assert!(allowed().contains_key(member), "{member} has no rule about what it may use");
    }
}

#[test]
fn every_source_file_is_part_of_the_module_tree() {
    for name in allowed().keys() {
        check_folder(&root().join(name).join("src"), true);
    }
}

/// A file `foo.rs` must be declared by the file that its folder belongs to.
fn check_folder(folder: &Path, top: bool) {
    let parents: Vec<String> = if top {
        ["lib.rs", "main.rs"].iter().filter_map(|f| fs::read_to_string(folder.join(f)).ok()).collect()
    } else {
        let file = folder.with_extension("rs");
        vec![fs::read_to_string(&file).unwrap_or_else(|_| panic!("{} has no {}", folder.display(), file.display()))]
    };
    for entry in fs::read_dir(folder).expect("a readable folder") {
        let path = entry.expect("a readable folder").path();
        if path.is_dir() {
            if path.file_name().is_some_and(|n| n != "bin") {
                check_folder(&path, false);
            }
            continue;
        }
        let (Some(stem), Some("rs")) =
            (path.file_stem().and_then(|s| s.to_str()), path.extension().and_then(|e| e.to_str()))
        else {
            continue;
        };
        let declaration = format!("mod {stem};");
        let declared = parents.iter().any(|p| {
            p.lines().any(|l| {
                l.trim_start_matches("pub ").trim_start_matches("pub(crate) ").trim() == declaration
                    || l.trim().ends_with(&format!(" {declaration}"))
            })
        });
        assert!(declared || matches!(stem, "lib" | "main"), "{} is not part of the module tree", path.display());
    }
}
