//! `coxswain convert`: an API object in any encoding in, any out; also what lies in etcd under upstream's keys.

use anyhow::{Context, Result};
use clap::{Arg, ArgMatches, Command};
use coxswain_api::codec::{self, Format};
use std::io::{Read, Write};

/// Objects are at most a few megabytes; this keeps a wrong file from filling the memory.
const INPUT_BYTES_MAX: u64 = 64 << 20;

pub fn command() -> Command {
    Command::new("convert")
        .about("Reads an object in JSON, YAML, protobuf or CBOR (it finds out which) and writes it in another encoding")
        .arg(
            Arg::new("file")
                .short('f')
                .long("filename")
                .value_name("FILE")
                .help("The object [default: standard input]"),
        )
        .arg(
            Arg::new("output")
                .short('o')
                .long("output")
                .value_name("FORMAT")
                .value_parser(["json", "yaml", "protobuf", "cbor"])
                .default_value("yaml")
                .help("The encoding to write"),
        )
}

pub fn main(matches: &ArgMatches) -> Result<()> {
    let mut bytes = Vec::new();
    match matches.get_one::<String>("file").filter(|f| *f != "-") {
        Some(path) => {
            let file = std::fs::File::open(path).with_context(|| format!("opening {path}"))?;
            file.take(INPUT_BYTES_MAX).read_to_end(&mut bytes).with_context(|| format!("reading {path}"))?;
        }
        None => {
            std::io::stdin().take(INPUT_BYTES_MAX).read_to_end(&mut bytes).context("reading standard input")?;
        }
    }
    let to = match matches.get_one::<String>("output").map(String::as_str) {
        Some("json") => Format::Json,
        Some("protobuf") => Format::Protobuf,
        Some("cbor") => Format::Cbor,
        _ => Format::Yaml,
    };
    let mut out = codec::convert(&bytes, to)?;
    if matches!(to, Format::Json) && !out.ends_with(b"\n") {
        out.push(b'\n');
    }
    std::io::stdout().write_all(&out).context("writing")
}
