//! Writes the OpenAPI documents of a server that serves every built-in version, without a server:
//! `cargo run -p coxswain-api --example openapi -- DIR`, for `conformance openapi --ours DIR --theirs DIR2`.

use coxswain_api::catalogue::{Version, builtin};
use coxswain_api::openapi::{Custom, Served, Source};
use std::path::PathBuf;
use std::sync::Arc;

fn main() -> std::io::Result<()> {
    let folder = PathBuf::from(std::env::args().nth(1).unwrap_or_else(|| "openapi".into()));
    std::fs::create_dir_all(folder.join("v3"))?;
    let versions = builtin().groups.iter().flat_map(|g| &g.versions).map(|v| Served {
        version: Arc::new(Version {
            group_version: v.group_version.clone(),
            served_by_default: v.served_by_default,
            resources: v.resources.clone(),
        }),
        custom: Custom::default(),
    });
    let source = Source { versions: versions.collect(), server_version: "v1.36.2".into() };
    std::fs::write(folder.join("swagger.json"), source.v2())?;
    for path in source.v3_paths() {
        let file = folder.join("v3").join(format!("{}_openapi.json", path.replace('/', "__")));
        std::fs::write(file, source.v3(&path).unwrap_or_default())?;
    }
    Ok(())
}
