//! Taking over what another store had, with its revisions: the same tables, written by a transaction of their own.

use super::Shared;
use super::committer::{Rows, state};
use super::connection::error;
use super::reads;
use super::statements::{ADVANCE, COMPACTED, DELETE, LOAD, LOCK, NOTIFY, PUT, RECORD};
use crate::Result;
use crate::group::{GAP_KEY, Group, State};
use crate::transfer::Import;
use std::collections::HashMap;
use std::sync::Arc;
use tokio_postgres::types::ToSql;

pub async fn run(shared: &Shared, import: Import) -> Result<()> {
    let failed = |e| error("import", e);
    let client = shared.connections.connect().await.map_err(failed)?;
    client.batch_execute("BEGIN").await.map_err(failed)?;
    let head = client.query_one(LOCK, &[]).await.map_err(failed)?;
    let mut keys: Vec<&str> = import.entries.iter().map(|entry| &*entry.key).collect();
    keys.extend(import.commits.iter().flat_map(|c| &c.changes).map(|change| &*change.key));
    keys.extend(import.expiries.iter().map(|(key, _)| &**key));
    keys.extend([GAP_KEY, crate::moved::KEY]);
    let states = client.query(LOAD, &[&keys]).await.map_err(failed)?;
    let states: HashMap<Arc<str>, State> = states.iter().map(state).collect();
    let load = |key: &str| Ok(states.get(key).cloned());
    let mut group = Group::new(&load, reads::revision(head.get(0)), head.get::<_, i64>(1) as u64);
    group.import(import)?;

    let rows = Rows::of(&group);
    let values: [&(dyn ToSql + Sync); 6] =
        [&rows.keys, &rows.created, &rows.modified, &rows.index, &rows.expires, &rows.values];
    client.execute(PUT, &values).await.map_err(failed)?;
    client.execute(DELETE, &[&rows.deleted]).await.map_err(failed)?;
    let record: [&(dyn ToSql + Sync); 8] = [
        &rows.revisions,
        &rows.indexes,
        &rows.times,
        &rows.changed,
        &rows.prior_created,
        &rows.prior_modified,
        &rows.prior_values,
        &0_i64,
    ];
    client.execute(RECORD, &record).await.map_err(failed)?;
    client.execute(ADVANCE, &[&(group.revision.0 as i64)]).await.map_err(failed)?;
    if let Some(compacted) = group.compacted {
        client.execute(COMPACTED, &[&(compacted.0 as i64)]).await.map_err(failed)?;
    }
    client.execute(NOTIFY, &[&shared.schema]).await.map_err(failed)?;
    client.batch_execute("COMMIT").await.map_err(failed)
}
