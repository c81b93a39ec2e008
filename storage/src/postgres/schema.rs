//! The tables, and how they come to be: each version of the schema is a script that is applied once to the version before
//! it. Several servers may start at once; a lock lets one of them do it.

use super::connection::{Session, error};
use crate::{Error, Result};

/// The scripts, the first of which makes the tables. A script that has been released never changes.
const MIGRATIONS: [&str; 2] = [include_str!("schema/1.sql"), include_str!("schema/2.sql")];
/// Taken while the tables are made. Any number that nobody else uses.
const LOCK: i64 = 0x636f_7873_7761_696e;

/// Brings the schema to the version that this program knows, in one transaction.
pub async fn migrate(client: &mut Session, schema: &str) -> Result<()> {
    let failed = |e| error("open", e);
    let prepare = format!(
        "SET LOCAL lock_timeout = '60s'; SELECT pg_advisory_xact_lock({LOCK}); CREATE SCHEMA IF NOT EXISTS {schema};
         CREATE TABLE IF NOT EXISTS migrations (version integer PRIMARY KEY, applied timestamptz NOT NULL DEFAULT now());"
    );
    let transaction = client.transaction().await.map_err(failed)?;
    transaction.batch_execute(&prepare).await.map_err(failed)?;
    let row = transaction
        .query_one("SELECT max(version), to_regclass('head') IS NOT NULL FROM migrations", &[])
        .await
        .map_err(failed)?;
    // The first version did not write itself down.
    let version = row.get::<_, Option<i32>>(0).unwrap_or(i32::from(row.get::<_, bool>(1)));
    let known = MIGRATIONS.len() as i32;
    if version > known {
        let what = format!("version {version} of the schema; this version of Coxswain knows {known}");
        return Err(Error::Corrupt { place: format!("the schema {schema}"), what });
    }
    for (script, version) in MIGRATIONS.iter().zip(1..).skip(version as usize) {
        transaction.batch_execute(script).await.map_err(failed)?;
        let note = "INSERT INTO migrations (version) VALUES ($1)";
        transaction.execute(note, &[&version]).await.map_err(failed)?;
    }
    transaction.commit().await.map_err(failed)
}
