//! Compares what a server says of itself in OpenAPI, versions 3 and 2, with documents of another server.
//!
//! Everything counts but prose: operations, parameters, media types, schemas, properties, formats, defaults, enums, list
//! types, keys. Where order means nothing (parameters, `required`, `enum`, media types), it is ignored. The reference is a
//! folder with `swagger.json` and `v3/apis__apps__v1_openapi.json`…, as upstream's source has it.

mod diff;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

#[derive(Args)]
pub struct Options {
    /// The server whose documents are compared
    #[arg(long, value_name = "FILE", required_unless_present = "ours")]
    kubeconfig: Option<PathBuf>,
    /// A folder of documents to compare instead of a server's
    #[arg(long, value_name = "DIR")]
    ours: Option<PathBuf>,
    /// The folder to compare with
    #[arg(long, value_name = "DIR")]
    theirs: PathBuf,
    /// Keep the server's documents in this folder, in the form that --theirs reads
    #[arg(long, value_name = "DIR")]
    save: Option<PathBuf>,
    /// Descriptions count too
    #[arg(long)]
    descriptions: bool,
    /// Documents, paths and definitions that begin with this are not compared; repeat it
    #[arg(long, value_name = "PREFIX")]
    skip: Vec<String>,
    /// Their server ran with the feature gate OpenAPIEnums off, so that enums are only ours
    #[arg(long)]
    without_enums: bool,
    /// Media types that hold this text are not compared; repeat it
    #[arg(long, value_name = "TEXT")]
    without_media: Vec<String>,
    /// At most so many differences are well
    #[arg(long, value_name = "N", default_value_t = 0)]
    most: usize,
    /// Print every difference, not just the first of each sort
    #[arg(long)]
    all: bool,
}

/// Documents by name: `v2`, `v3/api/v1`, `v3/apis/apps`…
type Documents = BTreeMap<String, Value>;

/// Whether there are few enough differences.
pub async fn run(options: Options) -> Result<bool> {
    let theirs = read_folder(&options.theirs)?;
    let ours = match (&options.ours, &options.kubeconfig) {
        (Some(folder), _) => read_folder(folder)?,
        (None, Some(kubeconfig)) => fetch(kubeconfig).await?,
        (None, None) => bail!("either --kubeconfig or --ours says what to compare"),
    };
    if let Some(folder) = &options.save {
        save(folder, &ours)?;
    }
    let mut found = Vec::new();
    let rules = diff::Rules {
        descriptions: options.descriptions,
        without_enums: options.without_enums,
        without_media: &options.without_media,
        skip: &options.skip,
    };
    let wanted = |name: &str| {
        !options.skip.iter().any(|s| format!("/{}", name.trim_start_matches("v3/")).starts_with(s.as_str()))
    };
    let theirs: Documents = theirs.into_iter().filter(|(name, _)| wanted(name)).collect();
    for (name, document) in &theirs {
        match ours.get(name) {
            Some(own) => diff::documents(name, own, document, &rules, &mut found),
            None => found.push(format!("{name}: missing")),
        }
    }
    for name in ours.keys().filter(|n| !theirs.contains_key(*n) && wanted(n)) {
        found.push(format!("{name}: only here"));
    }
    let shown = if options.all { found.len() } else { 100 };
    found.iter().take(shown).for_each(|line| println!("{line}"));
    if found.len() > shown {
        println!("… and {} more", found.len() - shown);
    }
    println!("{} documents compared, {} differences", theirs.len(), found.len());
    Ok(found.len() <= options.most)
}

fn read(path: &Path) -> Result<Value> {
    let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("reading {}", path.display()))
}

fn read_folder(folder: &Path) -> Result<Documents> {
    let mut documents = Documents::new();
    documents.insert("v2".into(), read(&folder.join("swagger.json"))?);
    let v3 = folder.join("v3");
    for entry in std::fs::read_dir(&v3).with_context(|| format!("reading {}", v3.display()))? {
        let path = entry?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if let Some(name) = name.strip_suffix("_openapi.json") {
            documents.insert(format!("v3/{}", name.replace("__", "/")), read(&path)?);
        }
    }
    Ok(documents)
}

fn save(folder: &Path, documents: &Documents) -> Result<()> {
    std::fs::create_dir_all(folder.join("v3"))?;
    for (name, document) in documents {
        let path = match name.strip_prefix("v3/") {
            Some(name) => folder.join("v3").join(format!("{}_openapi.json", name.replace('/', "__"))),
            None => folder.join("swagger.json"),
        };
        std::fs::write(path, serde_json::to_vec_pretty(document)?)?;
    }
    Ok(())
}

/// All documents of a server. Each must also answer "not modified" to a client that has it, and have a protobuf form.
async fn fetch(kubeconfig: &Path) -> Result<Documents> {
    let client = coxswain_client::connect::from_kubeconfig(kubeconfig)?;
    let mut documents = Documents::new();
    documents.insert("v2".into(), document(&client, "/openapi/v2", "v2").await?);
    let (_, index) = get(&client, "/openapi/v3", &[]).await?;
    let index: Value = serde_json::from_slice(&index).context("reading the index")?;
    for (name, entry) in index["paths"].as_object().context("the index has no paths")? {
        let url = entry["serverRelativeURL"].as_str().context("a document has no URL")?;
        documents.insert(format!("v3/{name}"), document(&client, url, "v3").await?);
    }
    Ok(documents)
}

async fn document(client: &kube::Client, url: &str, dialect: &str) -> Result<Value> {
    let (head, body) = get(client, url, &[("accept", "application/json")]).await?;
    let value = serde_json::from_slice(&body).with_context(|| format!("reading {url}"))?;
    let etag = head.headers.get("etag").and_then(|v| v.to_str().ok()).with_context(|| format!("{url} has no ETag"))?;
    let (head, _) = get(client, url, &[("if-none-match", etag)]).await?;
    if head.status != 304 {
        bail!("{url} is sent again ({}) to a client that has it", head.status);
    }
    let accept = format!("application/com.github.proto-openapi.spec.{dialect}@v1.0+protobuf");
    let (head, body) = get(client, url, &[("accept", &accept)]).await?;
    if head.status != 200 || body.is_empty() {
        bail!("{url} has no protobuf form: {}", head.status);
    }
    Ok(value)
}

async fn get(client: &kube::Client, url: &str, headers: &[(&str, &str)]) -> Result<(http::response::Parts, Vec<u8>)> {
    let mut request = http::Request::get(url);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response =
        client.send(request.body(kube::client::Body::empty())?).await.with_context(|| format!("GET {url}"))?;
    let (head, body) = response.into_parts();
    let bytes = body.collect_bytes().await.with_context(|| format!("GET {url}"))?;
    Ok((head, bytes.to_vec()))
}
